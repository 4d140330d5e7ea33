"""Settings become objects: the suite's questions, the target and its tokenizer."""

from collections.abc import Mapping
from typing import Any

import huggingface_hub.utils as hub
import transformers.utils.logging as transformers_logging
from jinja2 import TemplateError
from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedTokenizerBase

from specbench.decoding.drafter import Drafter
from specbench.decoding.language_model import LanguageModel
from specbench.drafters.checkpoints import RANDOM
from specbench.errors import InputError, nearest, one_line
from specbench.models.chat import render
from specbench.models.load import load_model, load_tokenizer
from specbench.models.target import Target
from specbench.setup.fingerprints import fingerprint, method_code
from specbench.setup.rules import LOADING
from tasks.question import Question, subsample
from tasks.suite import Suite

EMBEDDED = "specbench/zoo/target"


def quiet() -> None:
    """Only what specbench itself has to say reaches the terminal; of the libraries' bars only downloads'."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    hub.logging.set_verbosity_error()
    hub.enable_progress_bars()


def questions_of(config: DictConfig, suite: Suite, limit: int | None) -> list[Question]:
    """The suite's questions of the config's tasks, at most `limit` of each. Raises InputError when there are none."""
    there, tasks = suite.questions(), [task.name for task in config.task.values()]
    chosen = [question for question in there if question.task in tasks]
    if not chosen:
        has = nearest(tasks[0], list(dict.fromkeys(question.task for question in there)))
        raise InputError(f"suite {suite.name} has no question of task {', '.join(tasks)}; it has {has or 'none at all'}")
    return subsample(chosen, limit, config.seed)


def target_of(settings: DictConfig) -> Target:
    """Load the model and tokenizer that conf/target describes; what is cheap to refuse, before the weights."""
    plain: Any = OmegaConf.to_container(settings, resolve=True)
    shape, shapes = plain["shape"], plain.get("shapes") or {}
    if shape is not None and shape not in shapes:
        raise InputError(f"target.shape={shape}: {plain['name']} has {nearest(shape, list(shapes)) or 'no shapes'}")
    if shape is not None and shapes[shape] in (None, {}):
        raise InputError(f"target.shapes.{shape} is empty: expected sizes, such as {{hidden_size: 2048}}")
    tokenizer, chat = tokenizer_of(settings)
    return Target(plain["name"], _model(plain), tokenizer, chat)


def tokenizer_of(settings: DictConfig) -> tuple[PreTrainedTokenizerBase, str]:
    """The target's tokenizer and chat format, tried out. Raises InputError."""
    quiet()
    plain: Any = OmegaConf.to_container(settings, resolve=True)
    tokenizer, chat = _tokenizer(plain)
    try:
        render(chat, [("Hello", None)], tokenizer)
    except TemplateError as error:
        raise InputError(f"the chat template of {plain['path']}: {one_line(error)}") from None
    return tokenizer, chat


def _model(settings: dict[Any, Any], **changes: Any) -> LanguageModel:
    shape = settings["shape"]
    return load_model(**{key: settings[key] for key in LOADING} | changes, shape=settings["shapes"][shape] if shape else None)


def _tokenizer(settings: dict[Any, Any]) -> tuple[PreTrainedTokenizerBase, str]:
    """Tokenizer and chat format; random weights have none of their own and take the embedded ones."""
    if settings["weights"] == "random":
        if settings["config"] is None:
            raise InputError("target.weights=random needs target.config, the model's architecture")
        return load_tokenizer(EMBEDDED, None, False), "template"
    if settings["path"] is None:
        raise InputError("target.path=null: expected a hub id or a folder")
    return load_tokenizer(settings["path"], settings["revision"], settings["trust_remote_code"]), settings["format"]


def prints(config: DictConfig, target: Target, suite: Suite, drafters: Mapping[str, Drafter]) -> dict[str, Any]:
    """What run.json adds to its provenance: the dtype and the fingerprints of data, weights and, by method, of its code."""
    models = {"target_sha256": config.target, "draft_sha256": config.target.draft or {}}
    read = {name: model for name, model in models.items() if model.get("path") and config.target.weights != "random"}
    found = {name: fingerprint(model["path"], model.get("revision")) for name, model in read.items()}
    return {
        **{"dtype": target.model.dtype_name, "suite_sha256": suite.fingerprint, **dict.fromkeys(models), **found},
        "codes": {str(label): method_code(settings) for label, settings in config.method.items()},
        "checkpoints": _checkpoints(drafters),
    }


def _checkpoints(drafters: Mapping[str, Drafter]) -> dict[str, str]:
    """By method, the fingerprints of what it loads besides draft models, such as trained heads or a skip set."""
    found: dict[str, list[str | None]] = {}
    for label, drafter in drafters.items():
        for part in drafter.family():
            checkpoint = getattr(part, "checkpoint", None)
            if checkpoint not in (None, RANDOM):
                place, _, revision = checkpoint.partition("@")
                found.setdefault(label, []).append(fingerprint(place, revision or None))
    return {label: ", ".join(map(str, prints)) for label, prints in found.items()}
