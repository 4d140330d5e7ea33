"""Settings become objects: the suite's questions, the target and its tokenizer."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import huggingface_hub.utils as hub
import transformers.utils.logging as transformers_logging
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from specbench.decoding.drafter import Drafter
from specbench.decoding.language_model import LanguageModel
from specbench.drafters.checkpoints import RANDOM
from specbench.errors import InputError, format_error, suggest_choices
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
    """Only what specbench itself has to say reaches the terminal; of the libraries' bars only downloads'."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    hub.logging.set_verbosity_error()
    hub.enable_progress_bars()


def check_values(settings: RunSettings, here: bool = True) -> None:
    """Raises InputError for a device that is not there, and for a YAML that does not fit its class.

    here: this machine is to run it, so that its device must be there.
    """
    if here:
        pick_dtype(settings.target.dtype, pick_device(settings.target.device))
    check_node(settings.suite, "suite")
    check_methods(settings.method)
    for name, node in settings.engine.items():
        check_node(node, f"engine.{name}")


def check_methods(nodes: Mapping[str, Node]) -> None:
    """Raises InputError for a method's YAML that does not fit its class."""
    for label, node in nodes.items():
        check_node(node, f"method.{label}")


def instantiate_methods(nodes: Mapping[str, Node]) -> dict[str, Drafter]:
    """Methods by label, of checked nodes."""
    return {label: instantiate(node) for label, node in nodes.items()}


def select_questions(settings: Settings, suite: Suite, limit: int | None) -> list[Question]:
    """The suite's questions of the chosen tasks, at most `limit` of each. Raises InputError when there are none."""
    there, tasks = suite.questions(), settings.tasks
    chosen = [question for question in there if question.task in tasks]
    if not chosen:
        has = suggest_choices(tasks[0], list(dict.fromkeys(question.task for question in there)))
        raise InputError(f"suite {suite.name} has no question of task {', '.join(tasks)}; it has {has or 'none at all'}")
    return subsample(chosen, limit, settings.seed)


def load_target(settings: TargetSettings) -> Target:
    """Load the model and tokenizer that conf/target describes; what is cheap to refuse, before the weights."""
    shape = settings.sizes
    tokenizer, chat = load_target_tokenizer(settings)
    return Target(settings.name, _load(settings, shape), tokenizer, chat)


def load_in_dtype(settings: TargetSettings, dtype: str) -> LanguageModel:
    """The same weights in another dtype."""
    return _load(replace(settings, dtype=dtype), settings.sizes)


def _load(settings: TargetSettings, shape: Mapping[str, int] | None) -> LanguageModel:
    return load_model(
        path=settings.path,
        revision=settings.revision,
        weights=settings.weights,
        config=settings.config,
        dtype=settings.dtype,
        device=settings.device,
        device_map=settings.device_map,
        trust_remote_code=settings.trust_remote_code,
        shape=shape,
    )


def load_target_tokenizer(settings: TargetSettings) -> tuple[PreTrainedTokenizerBase, str]:
    """The target's tokenizer and chat format, tried out. Raises InputError."""
    silence_libraries()
    tokenizer, chat = _choose_tokenizer(settings)
    try:
        render_prompt(chat, [("Hello", None)], tokenizer)
    except TemplateError as error:
        raise InputError(f"the chat template of {settings.path}: {format_error(error)}") from None
    return tokenizer, chat


def _choose_tokenizer(settings: TargetSettings) -> tuple[PreTrainedTokenizerBase, str]:
    """Tokenizer and chat format; random weights have none of their own and take the embedded ones."""
    if settings.weights == "random":
        if settings.config is None:
            raise InputError("target.weights=random needs target.config, the model's architecture")
        return load_tokenizer(EMBEDDED, None, False), "template"
    if settings.path is None:
        raise InputError("target.path=null: expected a hub id or a folder")
    return load_tokenizer(settings.path, settings.revision, settings.trust_remote_code), settings.format


def collect_fingerprints(
    settings: RunSettings | CertifySettings, target: Target, suite: Suite, drafters: Mapping[str, Drafter]
) -> dict[str, Any]:
    """What run.json adds to its provenance: the dtype and the fingerprints of data, weights and, by method, of its code."""
    return {
        "dtype": target.model.dtype_name,
        "suite_sha256": suite.fingerprint,
        **_weights(settings.target),
        "code_kind": CODE_KIND,
        "codes": {label: hash_method_code(node) for label, node in settings.method.items()},
        "checkpoints": _hash_checkpoints(drafters),
    }


def _weights(settings: TargetSettings) -> dict[str, str | None]:
    """Fingerprints of the target's and the draft model's files; None where there are none."""
    draft = settings.draft or {}
    places = {"target_sha256": (settings.path, settings.revision), "draft_sha256": (draft.get("path"), draft.get("revision"))}
    trained = settings.weights != "random"
    return {name: hash_path(path, revision) if path and trained else None for name, (path, revision) in places.items()}


def _hash_checkpoints(drafters: Mapping[str, Drafter]) -> dict[str, str]:
    """By method, the fingerprints of what it loads besides draft models, such as trained heads or a skip set."""
    found: dict[str, list[str | None]] = {}
    for label, drafter in drafters.items():
        for part in drafter.iter_family():
            checkpoint = getattr(part, "checkpoint", None)
            if checkpoint not in (None, RANDOM):
                place, _, revision = checkpoint.partition("@")
                found.setdefault(label, []).append(hash_path(place, revision or None))
    return {label: ", ".join(map(str, prints)) for label, prints in found.items()}
