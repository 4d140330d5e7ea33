"""Forwards as CUDA graphs: recorded once per shape, then launched whole, so that the host's code takes no time.

A recorded forward reads and writes tensors at fixed addresses: its own copies of the inputs, and the KV store it was recorded
over. Nothing in it may ask the device for a number.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import replace
from functools import cache
from time import perf_counter
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from specbench.decoding.static import StaticPass
from specbench.machine.devices import synchronize

Output = TypeVar("Output")
Inputs = tuple[Tensor, ...]
MOST_GRAPHS = 128  # of one forward; each holds its output


class Capture(Generic[Output]):
    """One forward as a graph, for inputs and a pass of given shapes over one KV store. pool: of memory, see `record`."""

    def __init__(self, compute: Callable[..., Output], inputs: Inputs, static: StaticPass, pool: Any) -> None:
        masks = {reach: mask.clone() for reach, mask in static.masks.items()}
        self._inputs = tuple(tensor.clone() for tensor in inputs)
        self._pass = replace(static, slots=static.slots.clone(), masks=masks, reduces=False)
        self._replay, self._output, self.pool = record(lambda: compute(*self._inputs, self._pass), static.slots.device, pool)

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
    """The graphs of one forward over its latest KV store, by shape; those used least recently are dropped.

    seconds: spent recording, which belongs to no turn's time.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._store: tuple[int, ...] = ()  # addresses of its layers
        self._graphs: OrderedDict[Hashable, Capture[Output]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._graphs)

    def run(self, compute: Callable[..., Output], inputs: Inputs, static: StaticPass, variant: Hashable) -> Output:
        """Replay the graph for inputs like these; record it first if there is none."""
        if (store := tuple(tensor.data_ptr() for pair in static.layers.values() for tensor in pair)) != self._store:
            self._graphs.clear()  # they would write to the former store, and keep it alive
            self._store = store
        key = (variant, static.slots.shape, *(tensor.shape for tensor in (*inputs, *static.masks.values())))
        if key not in self._graphs:
            self._record(key, compute, inputs, static)
        self._graphs.move_to_end(key)
        return self._graphs[key].run(inputs, static)

    def _record(self, key: Hashable, compute: Callable[..., Output], inputs: Inputs, static: StaticPass) -> None:
        synchronize(static.slots.device)
        started = perf_counter()
        pool = next((graph.pool for graph in self._graphs.values()), None)  # they run one after another, so they share memory
        self._graphs[key] = Capture(compute, inputs, static, pool)
        if len(self._graphs) > MOST_GRAPHS:
            self._graphs.popitem(last=False)
        synchronize(static.slots.device)
        self.seconds += perf_counter() - started


def record(forward: Callable[[], Output], device: torch.device, pool: Any) -> tuple[Callable[[], None], Output, Any]:
    """Run a forward once, for libraries to allocate what they need, then record it.

    Return what replays it, its output, and the memory that further graphs may share as `pool`. Raises CUDA's error if it refuses.
    """
    with torch.cuda.device(device):
        current, aside = torch.cuda.current_stream(), _get_side_stream(device)
        aside.wait_stream(current)
        with torch.cuda.stream(aside):
            forward()
        current.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=pool, stream=aside):
                output = forward()
        finally:
            torch.cuda.set_stream(current)  # a recording that fails leaves its own in place
        return graph.replay, output, graph.pool()


@cache
def _get_side_stream(device: torch.device) -> Any:
    """Return the stream that forwards are recorded on: each new one would get its own workspaces."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
