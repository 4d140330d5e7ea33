"""Which product each linear layer of a model takes on this CPU: plain or packed, alone or with its siblings. Measured at load.

Which one is faster depends on the processor, the sizes and the number of rows: on one AVX-512 machine the plain float32 product
of one row is 9 % faster; on another it takes more than twice as long, because up to three rows run on a single core. A rule that
suits one processor makes the baseline run slower code on the next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import perf_counter
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from specbench.models.packed import Joint, JointLinear, PackedLinear, Product, is_plain, reduce

ROWS = (1, 2, 4, 8, 32)  # numbers of rows at which products are timed
ROUNDS = 5
MARGIN = 1.1  # the plain product is taken only if it is this many times as fast
SUM_MARGIN = 1.5  # by itself, the product must be this many times as fast as the sum: inside a graph, sums gain that much
SMALLEST = 32_768  # weights of a layer worth measuring
LARGE = 1 << 18  # weights; in a smaller layer, choosing by rows at each call costs more than it gains
BYTES = 1 << 28  # of weights read in one timing, if there are as many: more than the caches hold
CACHED = 1 << 24  # bytes of weights; calling a compiled function takes as long as reading less than these
SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # names in transformers' layers

Multiply = Callable[[Tensor], Tensor]


class Products:
    """What was measured in this process, or by the run that is resumed.

    first_rows: by shape, the fewest rows that take the packed product. sums: by dtype, whether a single row takes sums in
    compiled forwards, see `packed.reduce`.
    """

    def __init__(self) -> None:
        self.first_rows: dict[str, int | None] = {}
        self.sums: dict[str, bool] = {}

    def choose(self, layers: Sequence[nn.Linear]) -> int | None:
        """Return the fewest rows at which layers of one shape take the packed product; None: never."""
        name = _name_shape(layers[0])
        if name not in self.first_rows:
            first = measure_first_row(layers)
            undecided = first != 1 and layers[0].weight.numel() < LARGE
            self.first_rows[name] = None if undecided else first
        return self.first_rows[name]

    def choose_sums(self, layers: Sequence[PackedLinear]) -> bool:
        """Return whether a single row takes sums in compiled forwards."""
        name = str(layers[0].weight.dtype)[6:]
        if name not in self.sums:
            self.sums[name] = is_sum_as_fast(layers)
        return self.sums[name]

    def recall(self, first_rows: Mapping[str, int | None], sums: Mapping[str, bool]) -> None:
        """Adopt what an earlier process measured."""
        self.first_rows.update(first_rows)
        self.sums.update(sums)


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


def count_packed(model: nn.Module) -> int:
    """Return the bytes of the packed copies that `pack` would make: of every layer whose product is not known to stay plain."""
    layers = [module for module in model.modules() if _is_candidate(module)]
    return sum(layer.weight.nbytes for layer in layers if PRODUCTS.first_rows.get(_name_shape(layer), 1) is not None)


def prepare_for_graphs(model: nn.Module) -> bool | None:
    """Decide whether a single row takes sums in the model's compiled forwards; None: it has no layers to decide for.

    Raises whatever torch.compile does.
    """
    layers = [module for module in model.modules() if isinstance(module, PackedLinear)]
    if not layers:
        return None
    reduces = PRODUCTS.choose_sums(layers)
    for layer in layers:
        layer.reduces = reduces
    return reduces


def _is_candidate(module: nn.Module) -> TypeGuard[nn.Linear]:
    return is_plain(module) and module.weight.numel() >= SMALLEST


def _name_shape(layer: nn.Linear) -> str:
    bias = "" if layer.bias is None else " with bias"
    return f"{str(layer.weight.dtype)[6:]} {layer.in_features} to {layer.out_features}{bias}"


def _pack_children(module: nn.Module, first_rows: Mapping[str, int | None]) -> None:
    chosen = {name: first_rows.get(_name_shape(child)) for name, child in module.named_children() if is_plain(child)}
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
        if is_faster(*_time_both(x, [partial(linear, weight=layer.weight, bias=layer.bias) for layer in some], packed)):
            return first
        first = rows
    return first


@torch.inference_mode()
def is_sum_as_fast(layers: Sequence[PackedLinear]) -> bool:
    """Return whether a compiled sum of one row is not much slower than the product, over large layers of one width together.

    Inside a graph sums gain: the compiler fuses them with what surrounds them. For small layers that decides.
    """
    large = [layer for layer in layers if layer.weight.numel() >= LARGE]
    width = large[0].in_features if large else 0
    weights = [layer.weight for layer in large if layer.in_features == width]
    if sum(weight.nbytes for weight in weights) < CACHED:
        return True
    weight = torch.cat(weights[: max(1, BYTES // weights[0].nbytes)])
    x = torch.randn(1, 1, width).to(weight.dtype)
    known = large[0].product
    product = Product(weight, None, known.first_row).multiply if known else partial(linear, weight=weight)
    total = partial(torch.compile(reduce, dynamic=True), weight=weight, bias=None)
    return not is_faster(*_time_both(x, [product], [total]), margin=SUM_MARGIN)


def is_faster(first_s: Sequence[float], second_s: Sequence[float], margin: float = MARGIN) -> bool:
    """Return whether the first is `margin` times as fast, at its fastest and in most rounds: a busy machine disturbs some."""
    faster = [first * margin < second for first, second in zip(first_s, second_s, strict=True)]
    return min(first_s) * margin < min(second_s) and sum(faster) > len(faster) / 2


def _time_both(x: Tensor, first: Sequence[Multiply], second: Sequence[Multiply]) -> tuple[list[float], list[float]]:
    """Return the seconds of several passes through all layers, computed in two ways in turns."""
    first_s, second_s = [], []
    for _ in range(ROUNDS):
        started = perf_counter()
        for multiply in first:
            multiply(x)
        between = perf_counter()
        for multiply in second:
            multiply(x)
        first_s.append(between - started)
        second_s.append(perf_counter() - between)
    return first_s, second_s
