"""Build the objects that settings describe: the target and its tokenizer, and the methods."""

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import transformers.utils.logging as transformers_logging
from huggingface_hub.utils import logging as hub_logging
from huggingface_hub.utils.tqdm import enable_progress_bars
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase, modeling_gguf_pytorch_utils

from specbench.decoding.autoregressive import Autoregressive
from specbench.decoding.drafter import Drafter
from specbench.decoding.language_model import LanguageModel
from specbench.decoding.sampling import Sampling
from specbench.decoding.stopping import StopStrings
from specbench.drafters.checkpoints import BUILT_IN
from specbench.engine.base import Engine
from specbench.errors import InputError, name_place, show_value
from specbench.machine.devices import count_usable_cores, pick_device, pick_dtype
from specbench.models.chat import Chat, choose_chat, decode_whole, describe_chat, render_prompt
from specbench.models.load import check_model, create_config, load_draft, load_model, load_tokenizer
from specbench.models.place import locate
from specbench.models.quantize import check_quantize
from specbench.models.stored import name_gguf_types
from specbench.models.target import Target
from specbench.models.token_map import load_token_map
from specbench.records.trial import BASELINE
from specbench.records.typed import Label, check
from specbench.setup.fingerprints import CODE_KIND, hash_method_code, hash_path
from specbench.setup.instantiate import check_node, instantiate, iter_nodes, locate_class
from specbench.setup.settings import CertifySettings, Node, RunSettings, SamplingSettings, TargetSettings
from tasks.suite import Suite

EMBEDDED = "specbench/zoo/target"
LONGEST_LABEL = 99  # characters of a method's or an engine's name: two of them and an @ are a label of a record


def silence_libraries() -> None:
    """Keep the messages and progress bars of libraries off the terminal, except for downloads."""
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    hub_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of every product
    vars(modeling_gguf_pytorch_utils)["tqdm"] = partial(tqdm, disable=True)  # it heeds no verbosity
    enable_progress_bars()


def check_nodes(settings: RunSettings, here: bool = True) -> None:
    """Raise InputError for a YAML that does not fit its class.

    here: also for devices, dtypes and threads that this machine lacks.
    """
    if here:
        check_device(settings.target)
        check_threads(settings.threads)
    check_node(settings.suite, "suite", Suite)
    check_methods(settings.method)
    for name, node in settings.engine.items():
        check_label("engine", name)
        check_node(node, f"engine.{name}", Engine)
    settings.check_recorded()


def check_device(target: TargetSettings) -> None:
    """Raise InputError for a device or a dtype that this machine does not have."""
    with name_place("target."):
        device = pick_device(target.device)
        pick_dtype(target.dtype, device)
    with name_place("target.draft."):
        pick_dtype((target.draft or {}).get("dtype", "auto"), device)


def check_threads(threads: int | None) -> None:
    """Raise InputError for more threads than cores: they would wait for each other, and thousands stop the machine."""
    cores = count_usable_cores()
    if threads is not None and threads > cores:
        raise InputError(f"threads={threads}: this process may use {cores} cores; expected {cores} or fewer, or null")


def check_methods(nodes: Mapping[str, Node]) -> None:
    """Raise InputError for a method's YAML that does not fit its class, and for a baseline other than autoregressive decoding."""
    for label, node in nodes.items():
        check_label("method", label)
        check_node(node, f"method.{label}", Autoregressive if label == BASELINE else Drafter)
        if locate_class(node) is Drafter:
            raise InputError(f"method.{label}: {node['_target_']} is abstract; expected a subclass of it")


def check_label(group: str, name: str) -> None:
    """Raise InputError for a name that no table can show, or that could be read as a method on an engine."""
    check(name, Label, f"a name in {group}")
    if "@" in name or len(name) > LONGEST_LABEL:
        expected = f"at most {LONGEST_LABEL} characters without @, which separates a method from its engine"
        raise InputError(f"a name in {group} is {show_value(name)}; expected {expected}")


def instantiate_methods(nodes: Mapping[str, Node]) -> dict[str, Drafter]:
    """Return the methods by label."""
    return {label: instantiate(node, Drafter, f"method.{label}") for label, node in nodes.items()}


def drafts_with_model(node: Node) -> bool:
    """Return whether a method has its own language model, which takes the device's memory and time as the target does."""
    return any(locate_class(inner) is load_draft for inner in iter_nodes(node))


def translates_tokens(node: Node) -> bool:
    """Return whether a method's language model may have another tokenizer than the target."""
    return any(locate_class(inner) is load_token_map for inner in iter_nodes(node))


def check_models(target: TargetSettings, draft: bool) -> None:
    """Raise InputError for a model that does not exist, or does not fit its shape. draft: also for the draft model."""
    if target.sizes is not None and target.device_map is not None:
        raise InputError("target.shape: an expanded target must be on one device; set device_map=null")
    check_architectures(target, draft)
    with name_place("target."):
        check_quantize(target.quantize)
    with name_place("target: "):
        check_model(
            target.path,
            target.sizes,
            target.revision,
            target.weights,
            target.config,
            target.dtype,
            target.device,
            target.trust_remote_code,
        )
    if draft and target.draft is None:
        raise InputError("this target names no draft model: set target.draft.path, or leave the method out")
    if draft and target.draft is not None:
        model: dict[str, Any] = {"weights": target.weights, **target.draft, "device": target.device}
        with name_place("target.draft: "):
            check_model(**{key: value for key, value in model.items() if key != "device_map"})


def check_architectures(target: TargetSettings, draft: bool) -> None:
    """Raise InputError for a config of random weights that no model can be built from. draft: also for the draft model's."""
    configs = {"target.": target.config}
    if draft and target.draft is not None:
        configs["target.draft."] = target.draft.get("config")
    for place, config in configs.items() if target.weights == "random" else ():
        with name_place(place):
            create_config(config)


def load_target(settings: TargetSettings) -> Target:
    """Load the target's tokenizer and then its model."""
    tokenizer, chat = load_target_tokenizer(settings)
    return Target(settings.name, load_target_model(settings), tokenizer, chat)


def load_target_model(settings: TargetSettings) -> LanguageModel:
    """Load the target's weights, expanded to its shape. Raises InputError."""
    return load_model(**list_model_arguments(settings))


def list_model_arguments(settings: TargetSettings) -> dict[str, Any]:
    """Return the arguments of `load_model` for the target."""
    names = ("path", "revision", "weights", "config", "dtype", "device", "device_map", "trust_remote_code", "quantize")
    return {name: getattr(settings, name) for name in names} | {"shape": settings.sizes}


def load_target_tokenizer(settings: TargetSettings) -> tuple[PreTrainedTokenizerBase, Chat]:
    """Load the target's tokenizer and chat format, and try them out. Raises InputError.

    Random weights have none of their own and take those of the embedded target.
    """
    silence_libraries()
    if settings.weights == "random":
        if settings.config is None:
            raise InputError("target.weights=random needs target.config, the model's architecture")
        return load_tokenizer(EMBEDDED, None, False), Chat("template")
    if not settings.path:
        raise InputError(f"target.path={'null' if settings.path is None else repr('')}: expected a hub id or a folder")
    tokenizer = load_tokenizer(settings.path, settings.revision, settings.trust_remote_code)
    chat = choose_chat(Chat(settings.format, settings.template or {}, settings.system), tokenizer)
    render_prompt(chat, [("Hello", None)], tokenizer)
    return tokenizer, chat


def build_sampling(settings: SamplingSettings, target: Target) -> Sampling:
    """Return how tokens are chosen, and how answers end, on this target."""
    tokenizer = target.tokenizer
    stops = StopStrings(tuple(settings.stop), partial(decode_whole, tokenizer)) if settings.stop else None
    return Sampling(
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        max_new_tokens=settings.max_new_tokens,
        stop_token_ids=() if settings.ignore_eos else target.model.eos_ids,
        min_new_tokens=settings.min_new_tokens or 0,
        ending=stops,
    )


def collect_fingerprints(
    settings: RunSettings | CertifySettings, target: Target, suite: Suite, drafters: Mapping[str, Drafter]
) -> dict[str, Any]:
    """Return what run.json adds to its provenance: the dtype; fingerprints of questions, weights and each method's code."""
    return {
        "dtype": target.model.dtype_name,
        "suite_sha256": suite.fingerprint,
        "chat": describe_chat(target.chat, target.tokenizer),
        **_hash_weights(settings.target),
        "dequantised": _name_gguf(settings.target) or target.model.dequantised,
        "quantised": target.model.quantised,
        "eos_token_ids": list(target.model.eos_ids),
        "self_test": _collect_self_tests(target, drafters),
        "code_kind": CODE_KIND,
        "codes": {label: hash_method_code(node) for label, node in settings.method.items()},
        "checkpoints": _hash_checkpoints(drafters),
    }


def _name_gguf(target: TargetSettings) -> str | None:
    """Return how the target's GGUF file quantises its weights; None if nothing does."""
    if target.weights == "random" or not target.path or not (place := locate(target.path)).gguf:
        return None
    return name_gguf_types(Path(place.name) / place.gguf) or None


def _collect_self_tests(target: Target, drafters: Mapping[str, Drafter]) -> dict[str, Any]:
    """Return what the self-tests at load found: of the target, and by method of its draft model."""
    tests = {"target": target.model.self_test}
    for label, drafter in drafters.items():
        for model in drafter.list_models():
            if model.self_test:  # loaded, not made of the target's own layers
                tests[label] = model.self_test
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
            if checkpoint not in (None, *BUILT_IN):
                place, _, revision = checkpoint.partition("@")
                hashes.setdefault(label, []).append(hash_path(place, revision or None))
    return {label: ", ".join(map(str, several)) for label, several in hashes.items()}
