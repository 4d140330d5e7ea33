"""How a model's forwards run: eager, static (fixed shapes) or compiled (the same, through torch.compile).

A compiled graph serves every KV length and, but for one node of one sequence, every number of nodes: those are its dynamic
dimensions, so nothing is padded but the KV bucket. It reads tensors and nothing else of its surroundings; what was true when it
was traced is checked once, by `Runner.prepare`'s caller, and not at each call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor

from specbench.decoding.static import StaticPass

Kind = Literal["eager", "static", "compiled"]
Output = tuple[Tensor, Tensor]  # logits (B, N, V), hidden (B, N, taps * H)
Compute = Callable[[Tensor, Tensor, StaticPass], Output]
MOST_NODES = 256  # of all sequences together, in a forward of fixed shape; prompts run eagerly
ONE_NODE = {"realize_opcount_threshold": 8}  # or inductor computes the query's rotation again for every key it meets


class GraphKey(NamedTuple):
    """What graphs are compiled for: hidden states to return, one node or several, one sequence or several."""

    taps: tuple[int, ...]
    one_node: bool
    one_sequence: bool


class Runner:
    """Runs one model's forwards. compute: the model's forward, from token ids and positions (B, N)."""

    def __init__(self, compute: Compute) -> None:
        self.kind: Kind = "eager"
        self._compute = compute
        self._graphs: dict[GraphKey, Callable[..., Output]] = {}

    @property
    def graphs(self) -> int:
        """Number of compiled graphs."""
        return len(self._graphs)

    def has_graph(self, taps: tuple[int, ...], several: bool) -> bool:
        """Whether forwards of one sequence over one or several nodes are compiled."""
        return GraphKey(taps, not several, True) in self._graphs

    def is_static(self, ids: Tensor, written: bool) -> bool:
        """Whether a forward of token ids (B, N) runs at a fixed shape. written: the store's layers exist."""
        return self.kind != "eager" and written and ids.numel() <= MOST_NODES

    def run(self, ids: Tensor, positions: Tensor, static: StaticPass, taps: tuple[int, ...]) -> Output:
        """Run one forward; static, where no graph of its kind has been compiled."""
        graph = self._graphs.get(_key(ids, taps)) if self.kind == "compiled" else None
        if graph is None:
            return self._compute(ids, positions, static)
        return graph(ids, positions, *_flatten(static))

    def compile(self, ids: Tensor, positions: Tensor, static: StaticPass, taps: tuple[int, ...]) -> None:
        """Compile the graph for forwards like this one. Raises whatever torch.compile does."""
        key = _key(ids, taps)
        if key not in self._graphs:
            self._graphs[key] = _compile(self._compute, (ids, positions, *_flatten(static)), static.chunks, key)


def _key(ids: Tensor, taps: tuple[int, ...]) -> GraphKey:
    batch, nodes = ids.shape
    return GraphKey(taps, batch == nodes == 1, batch == 1)


def _flatten(static: StaticPass) -> tuple[Any, ...]:
    return static.slots, static.masks, static.layers


def _compile(compute: Compute, inputs: tuple[Any, ...], chunks: Sequence[int | None], key: GraphKey) -> Callable[..., Output]:
    def run(ids: Tensor, positions: Tensor, slots: Tensor, masks: Any, layers: Any) -> Output:
        return compute(ids, positions, StaticPass(layers, slots, masks, chunks, reduces=key.one_node))

    _mark_dynamic(inputs, key)
    options: dict[str, Any] = {"guard_filter_fn": _keep_no_guard, **(ONE_NODE if key.one_node else {})}
    function = torch.compile(_copy_function(cast(FunctionType, run)), fullgraph=True, options=options)
    function(*inputs)
    return function


def _copy_function(function: FunctionType) -> FunctionType:
    """Return the function with a code object of its own: torch.compile keeps graphs by code object, and tells them by guards."""
    code = function.__code__.replace()
    return FunctionType(code, function.__globals__, function.__name__, function.__defaults__, function.__closure__)


def _keep_no_guard(guards: Sequence[object]) -> list[bool]:
    return [False] * len(guards)


def _mark_dynamic(inputs: tuple[Any, ...], key: GraphKey) -> None:
    """Mark the dimensions that vary: S always, N and B where there are several."""
    ids, positions, slots, masks, layers = inputs
    batch = () if key.one_sequence else (0,)
    nodes = () if key.one_node else (1,)
    for tensor in (ids, positions, slots, *masks.values()):
        for dimension in (*batch, *nodes):
            torch._dynamo.mark_dynamic(tensor, dimension)
    for mask in masks.values():
        torch._dynamo.mark_dynamic(mask, 2)
    for tensor in (tensor for pair in layers.values() for tensor in pair):
        for dimension in (*batch, 2):
            torch._dynamo.mark_dynamic(tensor, dimension)
