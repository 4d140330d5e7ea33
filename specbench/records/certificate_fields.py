"""What a certificate's file holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypedDict

from specbench.bounds import Within
from specbench.errors import InputError
from specbench.records.documents import Provenance, Share
from specbench.records.evidence import EXACT, SO_FAR
from specbench.records.typed import Label, Name, list_hints


class _GTest(TypedDict):
    tokens: list[int]
    draws: int
    cells: int
    p_value: Share
    finds: float


class GTest(_GTest, total=False):
    level: Share
    statistic: float


class _Texts(TypedDict):
    texts: Annotated[int, Within(1, 1e9)]
    equal: int
    most_wrong: Share


class Texts(_Texts, total=False):
    longest: int
    wrong: int
    ended: int
    worst: float
    first: list[list[float]]


class Order(TypedDict):
    texts: int
    differing: int


# The tests of a verdict by name; `permuted` is an older certificate's.
Tests = TypedDict(
    "Tests",
    {"texts": Texts, "order": Order, "enumerated": list[GTest], "enumerated_again": list[GTest], "not enumerated": str},
    total=False,
)


class _Verdict(TypedDict):
    method: Label
    class_: Literal["untested", "exact so far", "exact", "sampled", "tie", "lossy", "bug"]
    tests: Tests


class VerdictFields(_Verdict, total=False):
    why: str


class JournalRow(VerdictFields):
    greedy: bool


class _TestedSampling(TypedDict):
    temperature: Annotated[float, Within(0, 1e6)]
    top_p: Annotated[float, Within(0, 1e6)]
    top_k: int
    max_new_tokens: Annotated[int, Within(1, 2**31)]


class TestedSampling(_TestedSampling, total=False):
    min_new_tokens: Annotated[int, Within(1, 2**31)] | None


class _TestedTarget(TypedDict):
    name: Name
    shape: Name | None


class TestedTarget(_TestedTarget, total=False):
    shapes: dict[str, Any] | None


class _TestedConfig(TypedDict):
    target: TestedTarget
    sampling: TestedSampling


class TestedConfig(_TestedConfig, total=False):
    engine: dict[str, Any] | None
    method: dict[str, dict[str, Any] | None] | None


class Noise(TypedDict):
    greedy: float
    sampled: float


class CertificateFields(TypedDict):
    schema: int
    about: Provenance
    config: TestedConfig
    level: Share
    noise: Noise
    floor: Order
    greedy: list[VerdictFields]
    sampled: list[VerdictFields]


def check_verdicts(greedy: Sequence[VerdictFields], sampled: Sequence[VerdictFields]) -> None:
    """Raise InputError where verdicts and their figures disagree, or the two lists are not of the same methods."""
    methods = [verdict["method"] for verdict in greedy]
    if methods != [verdict["method"] for verdict in sampled] or len(set(methods)) < len(methods):
        raise InputError("greedy and sampled: expected one verdict each on the same methods")
    for verdict in [*greedy, *sampled]:
        if unknown := sorted(verdict.keys() - list_hints(VerdictFields).keys()):
            raise InputError(f"{verdict['method']}: unknown fields {unknown}")
        texts, order = verdict["tests"].get("texts"), verdict["tests"].get("order")
        if texts and texts["equal"] > texts["texts"]:
            raise InputError(f"{verdict['method']}: {texts['equal']} of {texts['texts']} texts are equal")
        found = (texts and texts.get("wrong")) or (order and order["differing"])
        if verdict["class_"] in (EXACT, SO_FAR) and (found or not texts or texts["equal"] < texts["texts"]):
            raise InputError(f"{verdict['method']} is {verdict['class_']}, but its tests say otherwise")
