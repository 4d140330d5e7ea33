"""Compile a drafter's own layers, once they were compared with the same layers run eagerly."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from time import perf_counter

import torch
from torch import Tensor

from specbench.decoding.runner import Kind
from specbench.decoding.static import StaticPass
from specbench.drafters.layers import DraftKV
from specbench.drafters.network_drafter import LayerDrafter
from specbench.errors import format_error, is_out_of_memory
from specbench.models.forwards import CONTEXT, Choice, get_bound, time_both
from specbench.models.logits import is_finite, measure_distance
from specbench.models.products import prepare_for_graphs

SIZES = {"one node": 1, "several nodes": 6}


@torch.inference_mode()
def compile_layers(drafter: LayerDrafter) -> Choice | None:
    """Compile the layers of a bound drafter and return what became of it; None where it has no layers of its own."""
    if not drafter.network.list_layer_inputs(1):
        return None
    started, choice = perf_counter(), Choice("compiled")
    try:
        prepare_for_graphs(drafter.network)
        _compare(drafter, choice)
    except Exception as error:  # of any type: a compiler's
        if is_out_of_memory(error):
            raise
        choice.kind, choice.why = "eager", f"it cannot be compiled: {format_error(error)}"
    drafter.runner.kind = choice.kind
    choice.seconds = round(perf_counter() - started, 2)
    return choice


def _compare(drafter: LayerDrafter, choice: Choice) -> None:
    store = drafter.create_store(CONTEXT + max(SIZES.values()))
    drafter.run_layers(drafter.network.list_layer_inputs(CONTEXT)[0], store.build_token_pass(CONTEXT))
    store.keep(CONTEXT)
    for name, inputs in _list_shapes(drafter):
        eager, compiled = partial(_run, drafter, store, inputs, "eager"), partial(_run, drafter, store, inputs, "compiled")
        expected, found = eager(), compiled()
        difference = float(measure_distance(found.float(), expected.float()).max()) if is_finite(found) else float("inf")
        choice.difference = max(choice.difference, difference)
        if not difference <= get_bound(drafter.network.dtype):
            choice.kind, choice.why = "eager", f"compiled layers leave eager ones by {difference:.2g} of their output's spread"
        choice.times[name] = time_both(eager, compiled)


def _list_shapes(drafter: LayerDrafter) -> Iterator[tuple[str, tuple[Tensor, ...]]]:
    """Yield inputs over one and over several nodes, by name."""
    for name, nodes in SIZES.items():
        for inputs in drafter.network.list_layer_inputs(nodes):
            yield f"{name} of width {inputs[0].shape[-1]}", inputs


def _run(drafter: LayerDrafter, store: DraftKV, inputs: tuple[Tensor, ...], kind: Kind) -> Tensor:
    """Return the layers' output (N, H) after the store's tokens."""
    drafter.runner.kind = kind
    layer_pass = store.build_token_pass(inputs[0].shape[1])
    if isinstance(layer_pass, StaticPass):
        drafter.compile_layers(inputs, layer_pass)
    return drafter.run_layers(inputs, layer_pass)[0]
