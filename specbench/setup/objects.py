"""Build the objects that settings describe: the target and its tokenizer, the methods, the suite's questions."""

from collections.abc import Mapping
from typing import Any

import transformers.utils.logging as transformers_logging
from huggingface_hub.utils import logging as hub_logging
from huggingface_hub.utils.tqdm import enable_progress_bars
from transformers import PreTrainedTokenizerBase

from specbench.decoding.drafter import Drafter
from specbench.decoding.language_model import LanguageModel
from specbench.drafters.checkpoints import RANDOM
from specbench.errors import InputError, suggest_choices
from specbench.machine.devices import pick_device, pick_dtype
from specbench.models.chat import render_prompt
from specbench.models.load import load_model, load_tokenizer
from specbench.models.target import Target
from specbench.setup.fingerprints import CODE_KIND, hash_method_code, hash_path
from specbench.setup.instantiate import check_node, instantiate
from specbench.setup.settings import CertifySettings, Node, RunSettings, Settings, TargetSettings
from tasks.question import Question, subsample
from tasks.suite import Suite

EMBEDDED = "specbench/zoo/target"


def silence_libraries() -> None:
    """Keep the messages and progress bars of the libraries off the terminal, but for the bars of downloads."""
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    hub_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    enable_progress_bars()


def check_nodes(settings: RunSettings, here: bool = True) -> None:
    """Raise InputError for a YAML that does not fit its class. here: also for a device that this machine does not have."""
    if here:
        pick_dtype(settings.target.dtype, pick_device(settings.target.device))
    check_node(settings.suite, "suite")
    check_methods(settings.method)
    for name, node in settings.engine.items():
        check_node(node, f"engine.{name}")


def check_methods(nodes: Mapping[str, Node]) -> None:
    """Raise InputError for a method's YAML that does not fit its class."""
    for label, node in nodes.items():
        check_node(node, f"method.{label}")


def instantiate_methods(nodes: Mapping[str, Node]) -> dict[str, Drafter]:
    """Return the methods of checked nodes, by label."""
    return {label: instantiate(node) for label, node in nodes.items()}


def select_questions(settings: Settings, suite: Suite, limit: int | None) -> list[Question]:
    """Return the suite's questions of the chosen tasks, at most `limit` of each. Raises InputError if there are none."""
    questions = suite.questions()
    chosen = [question for question in questions if question.task in settings.tasks]
    if not chosen:
        tasks = suggest_choices(settings.tasks[0], list(dict.fromkeys(question.task for question in questions)))
        given = ", ".join(settings.tasks)
        raise InputError(f"suite {suite.name} has no question of task {given}; it has {tasks or 'none at all'}")
    return subsample(chosen, limit, settings.seed)


def load_target(settings: TargetSettings) -> Target:
    """Load the target's tokenizer and then its model."""
    tokenizer, chat = load_target_tokenizer(settings)
    return Target(settings.name, load_target_model(settings), tokenizer, chat)


def load_target_model(settings: TargetSettings) -> LanguageModel:
    """Load the target's weights, expanded to its shape. Raises InputError."""
    return load_model(
        path=settings.path,
        revision=settings.revision,
        weights=settings.weights,
        config=settings.config,
        dtype=settings.dtype,
        device=settings.device,
        device_map=settings.device_map,
        trust_remote_code=settings.trust_remote_code,
        shape=settings.sizes,
    )


def load_target_tokenizer(settings: TargetSettings) -> tuple[PreTrainedTokenizerBase, str]:
    """Load the target's tokenizer and chat format, and try them out. Raises InputError.

    Random weights have none of their own and take those of the embedded target.
    """
    silence_libraries()
    if settings.weights == "random":
        if settings.config is None:
            raise InputError("target.weights=random needs target.config, the model's architecture")
        return load_tokenizer(EMBEDDED, None, False), "template"
    if settings.path is None:
        raise InputError("target.path=null: expected a hub id or a folder")
    tokenizer = load_tokenizer(settings.path, settings.revision, settings.trust_remote_code)
    render_prompt(settings.format, [("Hello", None)], tokenizer)
    return tokenizer, settings.format


def collect_fingerprints(
    settings: RunSettings | CertifySettings, target: Target, suite: Suite, drafters: Mapping[str, Drafter]
) -> dict[str, Any]:
    """Return what run.json adds to its provenance: the dtype; fingerprints of questions, weights and each method's code."""
    return {
        "dtype": target.model.dtype_name,
        "suite_sha256": suite.fingerprint,
        **_hash_weights(settings.target),
        "self_test": _collect_self_tests(target, drafters),
        "code_kind": CODE_KIND,
        "codes": {label: hash_method_code(node) for label, node in settings.method.items()},
        "checkpoints": _hash_checkpoints(drafters),
    }


def _collect_self_tests(target: Target, drafters: Mapping[str, Drafter]) -> dict[str, Any]:
    """Return what the self-tests at load found: of the target, and by method of its draft model."""
    tests = {"target": target.model.self_test}
    for label, drafter in drafters.items():
        for held in (value for part in drafter.iter_family() for value in vars(part).values()):
            if isinstance(held, LanguageModel) and held is not target.model and held.self_test:
                tests[label] = held.self_test
    return tests


def _hash_weights(settings: TargetSettings) -> dict[str, str | None]:
    """Return fingerprints of the target's and the draft model's files; None where there are none."""
    draft = settings.draft or {}
    places = {"target_sha256": (settings.path, settings.revision), "draft_sha256": (draft.get("path"), draft.get("revision"))}
    trained = settings.weights != "random"
    return {name: hash_path(path, revision) if path and trained else None for name, (path, revision) in places.items()}


def _hash_checkpoints(drafters: Mapping[str, Drafter]) -> dict[str, str]:
    """Return, by method, the fingerprints of what it loads besides a draft model, such as trained heads or a skip set."""
    hashes: dict[str, list[str | None]] = {}
    for label, drafter in drafters.items():
        for part in drafter.iter_family():
            checkpoint = getattr(part, "checkpoint", None)
            if checkpoint not in (None, RANDOM):
                place, _, revision = checkpoint.partition("@")
                hashes.setdefault(label, []).append(hash_path(place, revision or None))
    return {label: ", ".join(map(str, several)) for label, several in hashes.items()}
