"""The typed settings of every command: all that the other rooms see of a config. Composed by `compose`; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from time import monotonic
from typing import Any, ClassVar, Literal, TypedDict, TypeVar

from specbench.bounds import MOST_LAYERS, find_depth
from specbench.errors import InputError, show_value, suggest_choices
from specbench.records.nested import flatten, look_up
from specbench.records.typed import find_odd
from specbench.setup.instantiate import check_types
from specbench.setup.rules import RULES, check_rules, parse_duration

Node = dict[str, Any]  # a YAML mapping of `_target_`, the class, and its arguments
# The whole config, and nodes, which `instantiate` checks.
UNTYPED = ("plain", "left_out", "named", "suite", "about_suite", "method", "engine")
ABOUT = ("licence", "source")  # keys of a suite's YAML that run.json and reports show; no class reads them
UNRECORDED = ("out", "log", "budget")  # of a run: where it writes, and when it stops; run.json says which budget it had
EXTRA = ("checkpoints", "datastore", "draft_dtypes", "draft_shapes")  # keys of a target's YAML that YAMLs of methods refer to


class DraftSettings(TypedDict, total=False):
    """The draft model, as a target's YAML describes it: arguments of `load_model`."""

    path: str | None
    revision: str | None
    dtype: str
    config: Mapping[str, Any] | None
    shape: Mapping[str, Any] | None
    weights: Literal["pretrained", "random"]
    device_map: str | Mapping[str, Any] | None
    trust_remote_code: bool


@dataclass(frozen=True)
class TargetSettings:
    """The target, as conf/target describes it. Further keys of its YAML are for the methods' YAMLs to refer to."""

    name: str
    path: str | None
    revision: str | None
    format: str
    dtype: str
    device: str
    device_map: str | Mapping[str, Any] | None
    trust_remote_code: bool
    weights: Literal["pretrained", "random"]
    config: Mapping[str, Any] | None
    shape: str | None
    draft: DraftSettings | None
    shapes: Mapping[str, Any] | None = None
    template: Mapping[str, Any] | None = None
    system: str | None = None
    quantize: str | None = None

    @property
    def sizes(self) -> Any:
        """The sizes of the chosen shape; None without one."""
        return None if self.shape is None else (self.shapes or {})[self.shape]

    def check_shape(self) -> None:
        """Raise InputError if the target has no such shape."""
        if self.shape is None:
            return
        shapes = self.shapes or {}
        if self.shape not in shapes:
            raise InputError(
                f"target.shape={self.shape}: {self.name} has {suggest_choices(self.shape, list(shapes)) or 'no shapes'}"
            )
        if shapes[self.shape] in (None, {}):
            raise InputError(f"target.shapes.{self.shape} is empty: expected sizes, such as {{hidden_size: 2048}}")


@dataclass(frozen=True)
class SamplingSettings:
    """How tokens are chosen; see decoding.sampling."""

    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int
    min_new_tokens: int | None = None
    ignore_eos: bool | None = None
    stop: list[str] | None = None

    @property
    def endings(self) -> dict[str, Any]:
        """The settings of how answers end that are not the default, by dotted name."""
        chosen = {f"sampling.{name}": getattr(self, name) for name in ("min_new_tokens", "ignore_eos", "stop")}
        return {name: value for name, value in chosen.items() if value}

    def check_lengths(self) -> None:
        """Raise InputError if min_new_tokens exceeds max_new_tokens."""
        if (self.min_new_tokens or 0) > self.max_new_tokens:
            raise InputError(
                f"sampling.min_new_tokens={self.min_new_tokens}: expected at most max_new_tokens, {self.max_new_tokens}"
            )


class GoodputSettings(TypedDict):
    """The limits of a good answer: seconds to its first token, and seconds per token after it."""

    first_token_s: float
    token_s: float


@dataclass(frozen=True)
class SearchSettings:
    """Settings of the search for a skip set."""

    trials: int
    prompts: int
    max_new_tokens: int


@dataclass(frozen=True)
class QuestionSettings:
    """Settings of the questions that the target writes itself, with data=self."""

    count: int
    openings: list[str]
    temperature: float
    top_p: float
    max_new_tokens: int
    avoid: list[str]


@dataclass(frozen=True)
class Settings:
    """What all commands share.

    plain: the whole resolved config. changed: dotted names of settings that are not the default. named: sections that the command
    line names. left_out: methods whose weights the target lacks, and what each needs. about_suite: licence and source of its
    questions. question, category: only these, None for all; train and datastore do not have them.
    """

    root: ClassVar[str]

    plain: Mapping[str, Any]
    changed: frozenset[str]
    left_out: Mapping[str, str]
    target: TargetSettings
    suite: Node
    about_suite: Mapping[str, str | None]
    tasks: list[str]
    limit: int | None
    seed: int
    out: str | None
    named: frozenset[str]
    question: list[int | str] | None = field(default=None, kw_only=True)
    category: list[str] | None = field(default=None, kw_only=True)

    @property
    def recorded(self) -> dict[str, Any]:
        """The config as config.yaml records it: with ~ for the home folder, and without what another command may change."""
        return {key: hide_home(value) for key, value in {**self.plain, "suite": self.suite}.items() if key not in UNRECORDED}

    def check_recorded(self) -> None:
        """Raise InputError for what could not be read again from config.yaml, such as .nan or a key that is a number."""
        for name, value in flatten(self.recorded):
            if odd := find_odd(value):
                raise InputError(f"{name}={show_value(value)}: {odd}")
        if odd := find_odd(self.recorded):
            raise InputError(f"the settings contain {odd}")


@dataclass(frozen=True)
class RunSettings(Settings):
    """The settings of `specbench run`, and of the commands about one run: plan, replay, cost, compare --against.

    started: when they were composed, by the monotonic clock; the budget counts from then on.
    """

    root = "config"

    method: Mapping[str, Node]
    engine: Mapping[str, Node]
    sampling: SamplingSettings
    repeats: int
    batch: int
    concurrency: int
    goodput: GoodputSettings | None
    context: Literal["reference", "own"]
    profile: bool
    check_baseline: bool
    threads: int | None
    log: str | None
    sweep: Mapping[str, Any]
    budget: str | None
    started: float = field(default_factory=monotonic, kw_only=True, compare=False)

    @property
    def budget_s(self) -> float | None:
        """Seconds that the run may take; None: as long as it needs."""
        return parse_duration(self.budget)

    def with_engine(self, name: str, **changes: Any) -> RunSettings:
        """Return a copy with other arguments for one engine."""
        engines = {**self.engine, name: {**self.engine[name], **changes}}
        return replace(self, engine=engines, plain={**self.plain, "engine": engines})


@dataclass(frozen=True)
class CertifySettings(Settings):
    root = "certify"

    method: Mapping[str, Node]
    sampling: SamplingSettings
    forward: Literal["auto", "eager", "static", "compiled", "graph"]
    level: float
    draws: int


@dataclass(frozen=True)
class TrainSettings(Settings):
    root = "train"

    method: Mapping[str, Node]
    search: SearchSettings
    questions: QuestionSettings
    cache_dir: str
    network: Mapping[str, Any] | None
    start: str | None
    storage: Literal["float16", "int8"]
    data: str | None
    max_new_tokens: int
    held_out: int
    epochs: float
    batch_tokens: int
    accumulate: int
    rate: float
    muon: float | None
    precision: Literal["no", "bf16", "fp16"]
    save_every: int
    file: str


@dataclass(frozen=True)
class DatastoreSettings(Settings):
    root = "datastore"

    data: str | None
    dataset: str | None
    split: str
    field: str | None
    max_new_tokens: int
    chunk_tokens: int | None


S = TypeVar("S", bound=Settings)
SECTIONS: dict[str, type] = {
    "target": TargetSettings,
    "sampling": SamplingSettings,
    "search": SearchSettings,
    "questions": QuestionSettings,
}


def parse_settings(
    kind: type[S], plain: Mapping[str, Any], changed: frozenset[str], left_out: Mapping[str, str] | None = None
) -> S:
    """Return a resolved config as settings. Raises InputError for a value of the wrong type or out of range."""
    check_rules(plain, RULES[kind.root])
    for place in ("target.config", "target.draft.config", "target.draft.shape", f"target.shapes.{plain['target'].get('shape')}"):
        _check_layers(look_up(plain, place), place)
    sections = {name: _construct(section, plain[name], name) for name, section in SECTIONS.items() if name in plain}
    sections["target"].check_shape()
    if "sampling" in sections:
        sections["sampling"].check_lengths()
    tasks = [task["name"] for task in plain["task"].values()]
    suite = {key: value for key, value in plain["suite"].items() if key not in ABOUT}
    about = {key: plain["suite"].get(key) for key in ABOUT}
    more = {"tasks": tasks, "plain": plain, "changed": changed, "suite": suite, "about_suite": about}
    more |= {"left_out": left_out or {}, "named": frozenset()}
    settings: S = _construct(kind, {**plain, **sections, **more}, "")
    return settings


def _check_layers(sizes: Any, place: str) -> None:
    if deep := find_depth(sizes):
        raise InputError(f"{place}.{deep}: expected at most {MOST_LAYERS:,}")


def _construct(kind: type[Any], plain: Mapping[str, Any], place: str) -> Any:
    values = {field.name: plain[field.name] for field in fields(kind) if field.name in plain}
    check_types(kind, {name: value for name, value in values.items() if name not in UNTYPED}, place)
    return kind(**values)


def hide_home(value: Any) -> Any:
    """Return a setting's value with ~ for the home folder."""
    if isinstance(value, dict):
        return {key: hide_home(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [hide_home(inner) for inner in value]
    home = f"{Path.home()}/"
    return f"~/{value.removeprefix(home)}" if isinstance(value, str) and value.startswith(home) else value
