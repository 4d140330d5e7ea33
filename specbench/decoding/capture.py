"""Forwards as CUDA graphs: recorded once per shape, then launched whole, so that the host's code costs nothing.

A recorded forward reads and writes tensors at fixed addresses: its own copies of the inputs, and the KV store it was recorded
over. Nothing in it may ask the device for a number.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace
from functools import cache
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from specbench.decoding.static import StaticPass

Output = TypeVar("Output")
Inputs = tuple[Tensor, ...]
MOST_STORES = 8  # whose graphs are kept: one per sequence of a batch


class Capture(Generic[Output]):
    """One forward as a graph, for inputs and a pass of given shapes over one KV store."""

    def __init__(self, compute: Callable[..., Output], inputs: Inputs, static: StaticPass) -> None:
        masks = {reach: mask.clone() for reach, mask in static.masks.items()}
        self._inputs = tuple(tensor.clone() for tensor in inputs)
        self._pass = replace(static, slots=static.slots.clone(), masks=masks, reduces=False)
        self._replay, self._output = record(lambda: compute(*self._inputs, self._pass))

    def run(self, inputs: Inputs, static: StaticPass) -> Output:
        """Compute the forward; the output is the caller's own."""
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        self._pass.slots.copy_(static.slots)
        for reach, mask in static.masks.items():
            self._pass.masks[reach].copy_(mask)
        self._replay()
        output: Output = tree_map_only(Tensor, Tensor.clone, self._output)
        return output


class Captures(Generic[Output]):
    """The graphs of one forward, by shape and KV store; of stores used long ago they are dropped."""

    def __init__(self) -> None:
        self.made = 0  # graphs recorded so far
        self._by_store: dict[tuple[int, ...], dict[Hashable, Capture[Output]]] = {}

    def run(self, compute: Callable[..., Output], inputs: Inputs, static: StaticPass, variant: Hashable) -> Output:
        """Replay the graph for inputs like these; record it first if there is none."""
        graphs = self._find_store(static)
        key = (variant, static.slots.shape, *(tensor.shape for tensor in (*inputs, *static.masks.values())))
        if key not in graphs:
            graphs[key] = Capture(compute, inputs, static)
            self.made += 1
        return graphs[key].run(inputs, static)

    def _find_store(self, static: StaticPass) -> dict[Hashable, Capture[Output]]:
        addresses = tuple(tensor.data_ptr() for pair in static.layers.values() for tensor in pair)
        graphs = self._by_store.pop(addresses, {})
        self._by_store[addresses] = graphs  # the latest last
        if len(self._by_store) > MOST_STORES:
            del self._by_store[next(iter(self._by_store))]
        return graphs


def record(forward: Callable[[], Output]) -> tuple[Callable[[], None], Output]:
    """Run a forward once, so that libraries allocate what they need, then record it; return what replays it, and its output."""
    current, aside = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(current)
    with torch.cuda.stream(aside):
        forward()
    current.wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=_get_pool()):
        output = forward()
    return graph.replay, output


@cache
def _get_pool() -> Any:
    """Return the memory that all graphs share: they run one after another."""
    return torch.cuda.graph_pool_handle()
