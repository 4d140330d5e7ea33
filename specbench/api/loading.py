"""Load a target, and methods for it, by the settings of the command line."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from specbench.engine.base import Engine
from specbench.errors import InputError, suggest_choices
from specbench.models.forwards import Wanted
from specbench.models.place import PACKAGE, find_local_file, find_local_folder
from specbench.models.target import Target
from specbench.records.trial import BASELINE
from specbench.running.checks import check_prompts
from specbench.running.drafters import complete_drafters, prepare_drafters
from specbench.running.servers import check_served
from specbench.setup import objects
from specbench.setup.compose import compose_run, list_options
from specbench.setup.instantiate import instantiate
from specbench.setup.settings import RunSettings
from specbench.setup.words import format_words

ENGINE = "native"


@dataclass(frozen=True, eq=False, repr=False)
class LoadedTarget:
    """A target in memory, with what its methods' settings refer to."""

    target: Target
    settings: RunSettings
    words: tuple[str, ...]  # its settings, as on a command line
    config_dir: Path | None
    forward: Wanted

    def __repr__(self) -> str:
        return f"LoadedTarget({' '.join(self.words)})"

    @property
    def name(self) -> str:
        return self.target.name

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer, of transformers."""
        return self.target.tokenizer

    @cached_property
    def baseline(self) -> LoadedMethod:
        """Autoregressive decoding on this target."""
        return load_method(BASELINE, self)


@dataclass(frozen=True, eq=False, repr=False)
class LoadedMethod:
    """A method bound to a target."""

    label: str
    target: LoadedTarget
    engine: Engine

    def __repr__(self) -> str:
        return f"LoadedMethod({self.label}, {self.target})"

    @property
    def warm(self) -> bool:
        """Whether it keeps something from answer to answer."""
        return self.engine.is_warm(self.label)

    def reset(self) -> None:
        """Clear what it keeps from answer to answer."""
        self.engine.reset(self.label)


def load_target(
    name_or_path: str | Path, *, config_dir: str | Path | None = None, forward: Wanted = "eager", **settings: Any
) -> LoadedTarget:
    """Load a target: a name of `specbench list`, or a folder, a GGUF file or a hub id of your own.

    settings: those of `target.` on the command line, such as shape="100m", dtype="float32" or draft={"path": "FOLDER"}.
    config_dir: a further folder of YAMLs, like conf/. forward: how forwards run (docs/forwards.md); a run's own choice, "auto",
    may compile for a minute. Raises InputError.
    """
    folder = None if config_dir is None else Path(config_dir)
    words = [_choose_target(name_or_path, folder), *format_words(settings, "target.")]
    composed = compose_run(words, folder).with_engine(ENGINE, forward=forward)
    objects.check_nodes(composed)
    objects.check_models(composed.target, draft=False)
    target = objects.load_target(composed.target)
    check_prompts([], target)
    return LoadedTarget(target, composed, tuple(words), folder, forward)


def _choose_target(name_or_path: str | Path, config_dir: Path | None) -> str:
    """Return the word that chooses a target. Raises InputError for a name that is neither a choice nor a place."""
    if not isinstance(name_or_path, (str, Path)):
        raise InputError(f"load_target: expected a name or a path, found {type(name_or_path).__name__}")
    name, known = str(name_or_path), list_options("target", config_dir)
    if isinstance(name_or_path, str) and name in known:
        return f"target={name}"
    if not (find_local_folder(name) or find_local_file(name) or "/" in name or name.startswith(PACKAGE)):
        raise InputError(f"target={name}: expected {suggest_choices(name, known)}, or a folder, a GGUF file or a hub id")
    (word,) = format_words({"target.path": name})
    return word


def load_method(label: str, target: LoadedTarget, **settings: Any) -> LoadedMethod:
    """Load a method for a target: a label of `specbench list`.

    settings: keys of its YAML in conf/method, such as length=5. Raises InputError, also for a method whose weights the target
    does not have.
    """
    if not isinstance(label, str) or not isinstance(target, LoadedTarget):
        found = f"{type(label).__name__}, {type(target).__name__}"
        raise InputError(f"load_method: expected a label and what load_target returned, found {found}")
    words = [*target.words, *format_words({"method": [label]}), *format_words(settings, f"method.{label}.")]
    composed = compose_run(words, target.config_dir).with_engine(ENGINE, forward=target.forward)
    composed = replace(composed, method={label: composed.method[label]})
    objects.check_nodes(composed)
    engine = instantiate(composed.engine[ENGINE], Engine, f"engine.{ENGINE}")
    check_served({ENGINE: engine}, composed.method)
    tokenizer = target.tokenizer
    drafters = complete_drafters(composed, prepare_drafters(composed, tokenizer), tokenizer)
    engine.open(target.target.model, drafters)
    return LoadedMethod(label, target, engine)
