"""How forwards run: eager, static (fixed shapes), compiled (static, by torch.compile) or graph (static, captured on CUDA).

A compiled graph serves every KV length and, but for one node of one sequence, every number of nodes: those are its dynamic
dimensions, so nothing is padded but the KV bucket. It depends on nothing but tensors. What was true when it was traced
is not checked again at each call: whoever compiles a graph compares it with the eager forward first.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from types import FunctionType
from typing import Any, Generic, Literal, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from specbench.decoding.capture import Captures
from specbench.decoding.static import StaticPass

Kind = Literal["eager", "static", "compiled", "graph"]
Output = TypeVar("Output")
Inputs = tuple[Tensor, ...]  # (B, N, ...) each
MOST_NODES = 256  # of a sequence, in a forward of fixed shape; prompts run eagerly
OPTIONS = {"cpp.enable_floating_point_contract_flag": "fast"}  # multiply and add in one instruction, as matrix products do
ONE_NODE = {"realize_opcount_threshold": 8}  # or inductor computes the query's rotation again for every key it meets


class GraphKey(NamedTuple):
    """What a graph is compiled for: one node or several, one sequence or several. variant: what else the caller distinguishes."""

    variant: Hashable
    one_node: bool
    one_sequence: bool


class Runner(Generic[Output]):
    """Runs one forward: compute(*inputs, pass)."""

    def __init__(self, compute: Callable[..., Output]) -> None:
        self.kind: Kind = "eager"
        self._compute = compute
        self._graphs: dict[GraphKey, Callable[..., Output]] = {}
        self.captures: Captures[Output] = Captures()

    @property
    def graphs(self) -> int:
        """Number of compiled graphs."""
        return len(self._graphs)

    def is_static(self, nodes: int) -> bool:
        """Return whether a forward over this many nodes per sequence runs at a fixed shape."""
        return self.kind != "eager" and nodes <= MOST_NODES

    def run(self, inputs: Inputs, static: StaticPass, variant: Hashable = ()) -> Output:
        """Run one forward; it runs as static if no graph of its kind has been compiled."""
        if self.kind == "graph":
            return self.captures.run(self._compute, inputs, static, variant)
        graph = self._graphs.get(_key(inputs, variant)) if self.kind == "compiled" else None
        if graph is None:
            return self._compute(*inputs, static)
        return graph(_pack(inputs), static.slots, static.masks, static.layers)

    def compile(self, inputs: Inputs, static: StaticPass, variant: Hashable = ()) -> None:
        """Compile the graph for forwards like this one. Raises whatever torch.compile does."""
        key = _key(inputs, variant)
        if key not in self._graphs:
            self._graphs[key] = _compile(self._compute, _pack(inputs), static, key)


def _pack(inputs: Inputs) -> Inputs:
    """Return the inputs without gaps: a graph knows its inputs' strides."""
    return tuple(tensor.contiguous() for tensor in inputs)


def _key(inputs: Inputs, variant: Hashable) -> GraphKey:
    batch, nodes = inputs[0].shape[:2]
    return GraphKey(variant, nodes == 1, batch == 1)


def _compile(compute: Callable[..., Output], inputs: Inputs, static: StaticPass, key: GraphKey) -> Callable[..., Output]:
    chunks = static.chunks

    def run(inputs: Inputs, slots: Tensor, masks: Any, layers: Any) -> Output:
        return compute(*inputs, StaticPass(layers, slots, masks, chunks, reduces=key.one_node))

    _mark_dynamic(inputs, static, key)
    options: dict[str, Any] = {"guard_filter_fn": _keep_no_guard, **OPTIONS, **(ONE_NODE if key.one_node else {})}
    function = torch.compile(_copy_function(cast(FunctionType, run)), fullgraph=True, dynamic=True, options=options)
    with torch._dynamo.config.patch(specialize_int=True, specialize_float=True):
        function(inputs, static.slots, static.masks, static.layers)
    return function


def _copy_function(function: FunctionType) -> FunctionType:
    """Return the function with its own code object: torch.compile keeps graphs by code object and selects them by guards."""
    code = function.__code__.replace()
    return FunctionType(code, function.__globals__, function.__name__, function.__defaults__, function.__closure__)


def _keep_no_guard(guards: Sequence[object]) -> list[bool]:
    return [False] * len(guards)


def _mark_dynamic(inputs: Inputs, static: StaticPass, key: GraphKey) -> None:
    """Mark the dimensions that vary: always S, and N and B if there are several. Sizes that are equal here stay equal."""
    batch = () if key.one_sequence else (0,)
    nodes = () if key.one_node else (1,)
    _mark([*inputs, static.slots], (*batch, *nodes))
    _mark(static.masks.values(), (*batch, *nodes, 2))
    _mark((tensor for pair in static.layers.values() for tensor in pair), (*batch, 2))


def _mark(tensors: Iterable[Tensor], free: Sequence[int]) -> None:
    for tensor in tensors:
        torch._dynamo.mark_static(tensor, [dimension for dimension in range(tensor.ndim) if dimension not in free])
