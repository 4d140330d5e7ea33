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
from specbench.models.forwards import CONTEXT, Choice, Trial, Trials, Wanted, get_bound, get_fast_kind

SIZES = {"one node": 1, "several nodes": 6}


@torch.inference_mode()
def choose_layers(drafter: LayerDrafter, wanted: Wanted, asked: str) -> Choice | None:
    """Compile or capture the layers of a bound drafter where wanted; return their forward, None if it has no layers of its own.

    asked: who wants that. Raises InputError where that cannot be had.
    """
    if wanted in ("eager", "static") or not drafter.network.list_layer_inputs(1):
        drafter.runner.kind = "static" if wanted == "static" else "eager"
        return None
    trials = Trials(drafter.target.device)
    trials.run(_list_trials(drafter), drafter.network)
    choice = trials.choose(wanted, asked)
    drafter.runner.kind = choice.kind
    return choice


def _list_trials(drafter: LayerDrafter) -> Iterator[Trial]:
    """Yield a trial over one and over several nodes, per width of input."""
    store = drafter.create_store(CONTEXT + max(SIZES.values()))
    drafter.run_layers(drafter.network.list_layer_inputs(CONTEXT)[0], store.build_token_pass(CONTEXT))
    store.keep(CONTEXT)
    fast = get_fast_kind(drafter.target.device)
    for name, nodes in SIZES.items():
        for inputs in drafter.network.list_layer_inputs(nodes):
            drafter.runner.kind = fast
            layer_pass = store.build_token_pass(nodes)
            assert isinstance(layer_pass, StaticPass)
            if fast == "compiled":
                drafter.compile_layers(inputs, layer_pass)
            else:
                _run(drafter, store, (-inputs[0], *inputs[1:]), fast)  # recorded with other inputs than it is compared on
            eager, faster = partial(_run, drafter, store, inputs, "eager"), partial(_run, drafter, store, inputs, fast)
            yield Trial(f"{name} of width {inputs[0].shape[-1]}", eager, faster, get_bound(drafter.network.dtype))


def _run(drafter: LayerDrafter, store: DraftKV, inputs: tuple[Tensor, ...], kind: Kind) -> Tensor:
    """Return the layers' output (N, H) after the store's tokens."""
    drafter.runner.kind = kind
    return drafter.run_layers(inputs, store.build_token_pass(inputs[0].shape[1]))[0]
