"""The fields of a run's documents that anything reads: those of config.yaml, run.json and the rows of texts.jsonl.

Other keys are allowed and only shown. Types are checked on reading, so reports, comparisons and exports can rely on them.
"""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import yaml

from specbench.bounds import Within
from specbench.errors import InputError
from specbench.records.files import parse_object, read_text
from specbench.records.trial import LIMITS, Seconds
from specbench.records.typed import Label, Name, Sha256, check, find_odd

YAML = 4 * 2**20  # bytes of the largest YAML that is read
Rate = Annotated[float, Within(1e-6, 1e9)]  # tokens per second
Share = Annotated[float, Within(0, 1)]
QuestionId = LIMITS["question_id"]


class Sampling(TypedDict, total=False):
    temperature: Annotated[float, Within(0, 1e6)] | None
    top_p: Annotated[float, Within(0, 1e6)] | None
    top_k: int | None
    max_new_tokens: Annotated[int, Within(1, 2**31)] | None
    min_new_tokens: Annotated[int, Within(1, 2**31)] | None
    ignore_eos: bool | None
    stop: list[str] | None


class Target(TypedDict, total=False):
    name: Name | None
    shape: Name | None
    dtype: Name | None
    dequantised: Name | None
    shapes: dict[str, Any] | None
    template: dict[str, Any] | None
    system: str | None


class Named(TypedDict, total=False):
    name: Name


class Goodput(TypedDict):
    first_token_s: Annotated[float, Within(0, 1e6)]
    token_s: Annotated[float, Within(0, 1e6)]


class Config(TypedDict, total=False):
    target: Target | None
    engine: dict[str, Any] | None
    method: dict[str, dict[str, Any] | None] | None
    task: dict[str, Named | None] | None
    suite: dict[str, Any] | None
    sampling: Sampling | None
    repeats: Annotated[int, Within(0, 1e6)] | None
    batch: Annotated[int, Within(1, 1e6)] | None
    goodput: Goodput | None
    concurrency: Annotated[int, Within(1, 1e6)] | None


class Device(TypedDict, total=False):
    kind: Name | None
    name: Name | None


class Machine(TypedDict, total=False):
    os: Name | None
    architecture: Name | None
    cpu: Name | None
    cores: int | None
    threads: int | None
    memory_bytes: int | None


class Git(TypedDict, total=False):
    commit: Name | None
    dirty: bool | None


class Store(TypedDict):
    """A datastore of a method, and how many of the run's questions it contains."""

    name: Name
    tokens: int
    questions: int
    leaked: int


class Rates(TypedDict):
    """An autoregressive engine's rates before the run, the run's own first."""

    engine: Name
    dtype: Name
    tokens_per_second: list[Rate]


class Forwards(TypedDict):
    """The milliseconds of forwards over each number of rows, timed before the run, round by round."""

    rows: Annotated[int, Within(1, 1e6)]
    milliseconds: list[Annotated[float, Within(1e-6, 1e9)]]


class Compared(TypedDict):
    """Over how many tokens a model was compared with transformers; 0: not at all."""

    tokens: int


class SelfTest(TypedDict, total=False):
    """The self-test of a target or draft model. beyond: by window."""

    beyond: dict[str, Compared] | None


class ForwardKind(TypedDict):
    kind: Literal["eager", "static", "compiled", "graph"]


class ForwardChoice(ForwardKind, total=False):
    """How forwards ran. why: they are not compiled; expected: that needs no notice. products: by shape of linear layer."""

    why: str
    expected: bool
    products: dict[str, int | None]
    sums: bool | None


class Memory(TypedDict):
    """What bounds autoregressive decoding on a CPU: it reads all weights for each token."""

    weight_bytes: Annotated[int, Within(1, 1e15)]
    read_bytes_per_second: Annotated[float, Within(1e3, 1e15)]


class AboutSuite(TypedDict, total=False):
    """Where a suite's questions come from, according to its YAML."""

    licence: Name | None
    source: Name | None


class Fingerprints(TypedDict, total=False):
    versions: dict[str, Name | None] | None
    code_sha256: Name | None
    codes: dict[str, Name] | None
    checkpoints: dict[str, Name] | None


class Continued(Fingerprints, total=False):
    started: Name | None
    differs: list[Name]


class Chat(TypedDict, total=False):
    """How questions became prompts: the format, and a chat template's fingerprint, arguments and system message."""

    format: Name
    template_sha256: Sha256 | None
    arguments: dict[str, Any]
    system: str | None


class Budget(TypedDict):
    """What a budget gave. seconds: given; ready_s: until the first block; questions: of the whole run, by task; question_s: the
    mean seconds of one by all methods."""

    seconds: Seconds
    used_s: Seconds
    ready_s: Seconds
    questions: dict[str, Annotated[int, Within(1, 1e9)]]
    question_s: dict[str, Seconds]


class Provenance(Fingerprints, total=False):
    started: Name | None
    dtype: Name | None
    dequantised: Name | None
    quantised: Name | None
    eos_token_ids: list[int] | None
    device: Device | None
    machine: Machine | None
    git: Git | None
    code_kind: Any
    suite: AboutSuite | None
    suite_sha256: Name | None
    target_sha256: Name | None
    draft_sha256: Name | None
    chat: Chat | None
    turns: Annotated[int, Within(0, 1e9)] | None
    watched: list[Name] | None
    baseline: list[Rates] | None
    baseline_failed: dict[str, Name] | None
    forward_ms: list[Forwards] | None
    self_test: dict[str, SelfTest] | None
    forward: dict[str, ForwardChoice] | None
    memory: Memory | None
    products: dict[str, int | None] | None
    sums: dict[str, bool] | None
    servers: dict[str, dict[str, dict[str, Any]]] | None
    leakage: dict[str, list[Store]] | None
    continued: list[Continued] | None
    stripped: bool | None
    budget: Budget | None


class Answer(TypedDict):
    method: Label
    question_id: QuestionId  # type: ignore[valid-type]
    turn: int
    text: str | None
    score: Share | None


class AnswerText(Answer, total=False):
    """A row of texts.jsonl: a decoded answer of the first repeat, and its score if the suite can score it.

    sha256: in place of the text (records/stripped.py).
    """

    sha256: Sha256


def read_provenance(path: Path) -> dict[str, Any]:
    """Return run.json. Raises InputError naming the file."""
    text = read_text(path)
    try:
        content = parse_document(text, Provenance)
        _check_start(content.get("started"))
        _check_rates(content.get("baseline") or [])
        _check_forwards(content.get("forward_ms") or [])
        _check_leakage(content.get("leakage") or {})
    except InputError as problem:
        raise InputError(f"{path}: {problem}") from None
    return content


def _check_start(started: str | None) -> None:
    try:
        datetime.fromisoformat((started or "2026-01-01").replace("Z", "+00:00")).timestamp()
    except (ValueError, OverflowError):
        raise InputError(f"started is {started!a}, expected a time such as 2026-01-31T12:00:00Z") from None


def _check_rates(baseline: list[Rates]) -> None:
    """Raise InputError unless all engines were timed in the same rounds, at least one."""
    rounds = {len(engine["tokens_per_second"]) for engine in baseline}
    if baseline and (len(rounds) > 1 or 0 in rounds):
        raise InputError("baseline: expected as many tokens_per_second of every engine, at least one")


def _check_forwards(forwards: list[Forwards]) -> None:
    """Raise InputError unless all numbers of rows were timed in the same rounds."""
    if len({len(forward["milliseconds"]) for forward in forwards}) > 1:
        raise InputError("forward_ms: expected as many milliseconds of every number of rows")


def _check_leakage(leakage: dict[str, list[Store]]) -> None:
    """Raise InputError for a datastore that holds more questions than there are."""
    for method, stores in leakage.items():
        for store in stores:
            if store["leaked"] > store["questions"]:
                raise InputError(f"leakage.{method}: leaked is {store['leaked']}, but questions {store['questions']}")


def parse_document(text: str, kind: Any) -> dict[str, Any]:
    """Return a JSON object, checked against a TypedDict. Raises InputError."""
    return _check_document(parse_object(text), kind)


def read_yaml(path: Path, kind: Any) -> dict[str, Any]:
    """Return a YAML file's mapping, checked against a TypedDict. Raises InputError naming the file."""
    text = read_text(path, YAML)
    try:
        return _check_document(yaml.load(text, _Loader), kind)
    except InputError as problem:
        raise InputError(f"{path}: {problem}") from None
    except RecursionError:
        raise InputError(f"{path}: nested too deeply") from None
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"{path}{line}: cannot be read: {error.problem}") from None
    except (
        yaml.YAMLError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        OverflowError,
    ) as error:  # a tag that does not fit
        raise InputError(f"{path}: cannot be read: {error}") from None


def _check_document(content: Any, kind: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise InputError(f"expected a mapping, found {type(content).__name__}")
    if odd := find_odd(content):
        raise InputError(odd)
    check(content, kind, "")
    return content


class _Loader(yaml.SafeLoader):
    """Plain YAML, in which a duplicate key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        counts = Counter((key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for (_, key), count in counts.most_common(1):
            if count > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!a} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)
