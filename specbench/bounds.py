"""Bounds of a number, given in an annotation: `length: Annotated[int, Within(1, 256)]` is checked before anything is built."""

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


LARGEST = 2**53  # the bound where no other is given: above it, a float no longer holds every whole number
MOST_LAYERS = 1024  # of a model: one with millions would take hours to build
LAYER_NAMES = (  # by which a config counts its layers: transformers' own, and what its attribute maps know
    *("num_hidden_layers", "num_layers", "n_layer", "n_layers", "layers", "depth"),
    *("decoder_layers", "encoder_layers", "decoder_num_hidden_layers"),
)


def find_depth(config: object) -> str | None:
    """Return `NAME=NUMBER` of a config, or of one inside it, that counts more layers than MOST_LAYERS."""
    if not isinstance(config, Mapping):
        return None
    deep = (f"{name}={config[name]}" for name in LAYER_NAMES if type(config.get(name)) is int and config[name] > MOST_LAYERS)
    inside = (f"{name}.{found}" for name, part in config.items() if (found := find_depth(part)))
    return next(deep, None) or next(inside, None)


def is_sound(value: float) -> bool:
    """Return whether a number is finite and small enough to compute with."""
    return math.isfinite(value) if isinstance(value, float) else abs(value) <= LARGEST


Length = Annotated[int, Within(1, 1024)]  # tokens of a draft, of a match or of an n-gram
Nodes = Annotated[int, Within(1, 4096)]  # of a tree
Depth = Annotated[int, Within(1, 64)]  # of a tree, and the width of its levels
TokenId = Annotated[int, Within(0, 2**31 - 1)]
Seed = Annotated[int, Within(0, LARGEST)]
Probability = Annotated[float, Within(0, 1)]
Rank = Annotated[int, Within(0, 255)]  # of a node among its siblings
StaticTree = Mapping[str, list[list[Rank]]]  # a YAML of conf/tree: `paths`, see decoding.tree.TreeShape
