"""Which product each linear layer of a model takes on this CPU: plain or packed, alone or with its siblings. Measured at load.

Which one is faster depends on the processor, the sizes and the number of rows: on one AVX-512 machine the plain float32 product
of one row is 9 % faster, on another it takes more than twice as long, as it runs on one core up to three rows. A rule that suits
one processor lets the baseline run slower code on the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from specbench.models.packed import Joint, JointLinear, PackedLinear, Product

ROWS = (1, 2, 4, 8, 32)  # numbers of rows at which products are timed
ROUNDS = 5
MARGIN = 1.1  # the plain product must be so many times as fast before it is taken
SMALLEST = 32_768  # weights of a layer worth measuring
LARGE = 1 << 18  # weights; in a smaller layer, choosing by rows at each call costs more than it gains
BYTES = 1 << 28  # of weights read in one timing, at least where there are as many: beyond the caches
SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # names in transformers' layers


class Products:
    """What was measured in this process, or by the run that is resumed: by shape, the rows from which packed is taken."""

    def __init__(self) -> None:
        self.first_rows: dict[str, int | None] = {}

    def clear(self) -> None:
        """Measure anew."""
        self.first_rows.clear()

    def choose(self, layers: Sequence[nn.Linear]) -> int | None:
        """Return the fewest rows at which layers of one shape take the packed product; None: never."""
        name = _name_shape(layers[0])
        if name not in self.first_rows:
            first = measure_first_row(layers)
            undecided = first != 1 and layers[0].weight.numel() < LARGE
            self.first_rows[name] = None if undecided else first
        return self.first_rows[name]

    def recall(self, known: Mapping[str, int | None]) -> None:
        """Take over what an earlier process measured."""
        self.first_rows.update(known)


PRODUCTS = Products()


def pack(model: nn.Module) -> dict[str, int | None]:
    """Replace linear layers by packed ones where those are faster, in place. Return the choice for each of its shapes."""
    by_shape: dict[str, list[nn.Linear]] = {}
    for layer in filter(_is_candidate, model.modules()):
        by_shape.setdefault(_name_shape(layer), []).append(layer)
    first_rows = {shape: PRODUCTS.choose(layers) for shape, layers in by_shape.items()}
    for module in list(model.modules()):
        _pack_children(module, first_rows)
    return first_rows


def _is_candidate(module: nn.Module) -> TypeGuard[nn.Linear]:
    return type(module) is nn.Linear and module.weight.numel() >= SMALLEST


def _name_shape(layer: nn.Linear) -> str:
    bias = "" if layer.bias is None else " with bias"
    return f"{str(layer.weight.dtype)[6:]} {layer.in_features} to {layer.out_features}{bias}"


def _pack_children(module: nn.Module, first_rows: Mapping[str, int | None]) -> None:
    chosen = {
        name: first
        for name, child in module.named_children()
        if _is_candidate(child) and (first := first_rows[_name_shape(child)]) is not None
    }
    for names in SIBLINGS:
        layers = [getattr(module, name) for name in names if chosen.get(name) == 1]
        if len(layers) == len(names) and len({(layer.in_features, layer.bias is None) for layer in layers}) == 1:
            joint = Joint(layers)
            for place, name in enumerate(names):
                setattr(module, name, JointLinear(layers[place], joint, place))
                del chosen[name]
    for name, first in chosen.items():
        setattr(module, name, PackedLinear(getattr(module, name), first))


@torch.inference_mode()
def measure_first_row(layers: Sequence[nn.Linear]) -> int | None:
    """Time plain and packed products of layers of one shape; return the fewest rows from which packed is never slower."""
    some = layers[: max(1, BYTES // layers[0].weight.nbytes)]
    packed = [Product(layer.weight, layer.bias) for layer in some]
    first: int | None = None
    for rows in reversed(ROWS):
        x = torch.randn(1, rows, some[0].in_features).to(some[0].weight.dtype)
        if _is_plain_faster(*_time_both(x, some, packed)):
            return first
        first = rows
    return first


def _is_plain_faster(plain_s: Sequence[float], packed_s: Sequence[float]) -> bool:
    """Whether the plain product is clearly faster, at its fastest and in most rounds: a busy machine disturbs some."""
    faster = [plain * MARGIN < packed for plain, packed in zip(plain_s, packed_s, strict=True)]
    return min(plain_s) * MARGIN < min(packed_s) and sum(faster) > len(faster) / 2


def _time_both(x: Tensor, plain: Sequence[nn.Linear], packed: Sequence[Product]) -> tuple[list[float], list[float]]:
    """Return the seconds of several passes through all layers, plain and packed in turns."""
    plain_s, packed_s = [], []
    for _ in range(ROUNDS):
        started = perf_counter()
        for layer in plain:
            linear(x, layer.weight, layer.bias)
        between = perf_counter()
        for product in packed:
            product(x)
        plain_s.append(between - started)
        packed_s.append(perf_counter() - between)
    return plain_s, packed_s
