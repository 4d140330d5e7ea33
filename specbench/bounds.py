"""Bounds of a number, said in an annotation: `length: Annotated[int, Within(1, 256)]` is checked before anything is built."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class Within:
    """The least and the largest number that is allowed."""

    low: float
    high: float

    def holds(self, value: object) -> bool:
        return type(value) in (int, float) and self.low <= value <= self.high  # type: ignore[operator]

    def __str__(self) -> str:
        return f"at least {self.low:,} and at most {self.high:,}"


LARGEST = 2**53  # of numbers without bounds of their own: beyond, a float no longer holds every whole number


def is_sound(value: float) -> bool:
    """Whether a number is finite and of a size that arithmetic can stand."""
    return math.isfinite(value) if isinstance(value, float) else abs(value) <= LARGEST


Length = Annotated[int, Within(1, 1024)]  # tokens of a draft, of a match or of an n-gram
Nodes = Annotated[int, Within(1, 4096)]  # of a tree
Depth = Annotated[int, Within(1, 64)]  # of a tree, and the width of its levels
TokenId = Annotated[int, Within(0, 2**31 - 1)]
Seed = Annotated[int, Within(0, LARGEST)]
Probability = Annotated[float, Within(0, 1)]
Rank = Annotated[int, Within(0, 255)]  # of a node among its siblings
StaticTree = Mapping[str, list[list[Rank]]]  # a YAML of conf/tree: `paths`, see decoding.tree.TreeShape
