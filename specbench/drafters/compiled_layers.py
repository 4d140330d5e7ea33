"""Compile or capture a drafter's own layers, under the same rule as a model's forward."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from specbench.decoding.runner import Kind
from specbench.decoding.static import StaticPass
from specbench.drafters.layers import DraftKV
from specbench.drafters.network_drafter import LayerDrafter
from specbench.models.forwards import CONTEXT, SHORTER, Choice, Trial, Trials, Wanted, choose_nodes, get_bound, get_fast_kind

SIZES = {"one node": 1, "several nodes": 6}


@torch.inference_mode()
def choose_layers(drafter: LayerDrafter, batch: int, wanted: Wanted, asked: str) -> Choice | None:
    """Compile or capture the layers of a bound drafter where wanted; return their forward, or None if it has no own layers.

    batch: sequences in a run's full groups. asked: who wants that kind. Raises InputError if it is impossible.
    """
    if wanted in ("eager", "static") or not drafter.network.list_layer_inputs(1):
        drafter.runner.kind = "static" if wanted == "static" else "eager"
        return None
    trials = Trials(drafter.target.device)
    for size in sorted({1, batch}):
        trials.run(_list_trials(drafter, size), drafter.network)
    choice = trials.choose(wanted, asked)
    drafter.runner.kind = choice.kind
    return choice


def _list_trials(drafter: LayerDrafter, batch: int) -> Iterator[Trial]:
    """Yield a trial over one and over several nodes, per width of input."""
    store = drafter.create_store(CONTEXT + max(SIZES.values()) + 1, batch)
    drafter.run_layers(_draw_inputs(drafter, CONTEXT, batch)[0], store.build_token_pass([CONTEXT] * batch))
    store.keep([CONTEXT - row % SHORTER for row in range(batch)])
    fast = get_fast_kind(drafter.target.device)
    beside = f" of {batch} sequences" if batch > 1 else ""
    for name, size in SIZES.items():
        nodes = choose_nodes(size, batch) if size > 1 else 1
        for inputs in _draw_inputs(drafter, nodes, batch):
            drafter.runner.kind = fast
            layer_pass = store.build_token_pass([nodes] * batch)
            assert isinstance(layer_pass, StaticPass)
            if fast == "compiled":
                drafter.compile_layers(inputs, layer_pass)
            else:
                _run(drafter, store, (-inputs[0], *inputs[1:]), fast)  # recorded with other inputs than it is compared on
            eager, faster = partial(_run, drafter, store, inputs, "eager"), partial(_run, drafter, store, inputs, fast)
            yield Trial(f"{name}{beside} of width {inputs[0].shape[-1]}", eager, faster, get_bound(drafter.network.dtype))


def _draw_inputs(drafter: LayerDrafter, nodes: int, batch: int) -> list[tuple[Tensor, ...]]:
    """Return inputs per width, with different hidden states for every sequence."""
    drawn = drafter.network.list_layer_inputs(nodes)
    return [(_draw_rows(hidden, batch), *(_repeat(one, batch) for one in others)) for hidden, *others in drawn]


def _draw_rows(hidden: Tensor, batch: int) -> Tensor:
    return torch.cat([hidden.roll(row, dims=-1) for row in range(batch)])


def _repeat(tensor: Tensor, batch: int) -> Tensor:
    return tensor.repeat(batch, *[1] * (tensor.ndim - 1))


def _run(drafter: LayerDrafter, store: DraftKV, inputs: tuple[Tensor, ...], kind: Kind) -> Tensor:
    """Return the layers' output (B * N, H) after the store's tokens."""
    drafter.runner.kind = kind
    batch, nodes = inputs[0].shape[:2]
    return drafter.run_layers(inputs, store.build_token_pass([nodes] * batch)).flatten(0, 1)
