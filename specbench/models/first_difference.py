"""Where our forward first departs from transformers' own: the layer, and the module in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from specbench.decoding.language_model import LanguageModel
from specbench.decoding.tree import DraftTree

Outputs = dict[str, list[Tensor]]  # of modules, by name, in the order of their calls


def describe_first_difference(model: LanguageModel, prompt: list[int], rest: list[int], bound: float) -> str:
    """Return `, first in layer 3 (sliding_attention), its MambaMixer`; empty if a chain of tokens shows no difference.

    It is also empty where a module of this model breaks the search. bound: relative difference that rounding explains.
    """
    try:
        return _find_first_difference(model, prompt, rest, bound)
    except Exception:  # of any type; the difference itself has been found, and is what the message is about
        return ""


def _find_first_difference(model: LanguageModel, prompt: list[int], rest: list[int], bound: float) -> str:
    ids = torch.tensor([prompt + rest], device=model.device)
    layers = model.layers
    with _record_outputs(layers) as theirs, model.use_original_attention() as plain:
        plain(input_ids=ids, use_cache=False)
    with _record_outputs(layers) as ours:
        store = model.create_store(ids.shape[1])
        model.prefill(store, [ids[0, : len(prompt)]])
        model.forward(store, [DraftTree.chain(ids[0, len(prompt) :])])
    for number, layer in enumerate(layers):
        if _differ(ours, theirs, str(number), bound):
            kinds = getattr(model.config, "layer_types", None)
            kind = f" ({kinds[number]})" if kinds else ""
            inside = (name for name in theirs if name.startswith(f"{number}.") and _differ(ours, theirs, name, bound))
            first = next((type(layer.get_submodule(name.split(".", 1)[1])).__name__ for name in inside), None)
            return f", first in layer {number}{kind}" + (f", its {first}" if first else "")
    return ""


@contextmanager
def _record_outputs(layers: nn.ModuleList) -> Iterator[Outputs]:
    """Yield the outputs of each layer, named by its number, and of the modules in it, named number.name."""
    outputs: Outputs = {}

    def record(name: str) -> Any:
        return lambda _, __, out: outputs.setdefault(name, []).extend(_take_first_tensor(out))

    hooks = [layer.register_forward_hook(record(str(number))) for number, layer in enumerate(layers)]
    for number, layer in enumerate(layers):
        hooks += [child.register_forward_hook(record(f"{number}.{name}")) for name, child in layer.named_children()]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def _take_first_tensor(out: Any) -> list[Tensor]:
    """Return the first tensor with rows in a module's output; None if there is none."""
    parts = out if isinstance(out, tuple) else (out,)
    return [part for part in parts if isinstance(part, Tensor) and part.ndim][:1]


def _differ(ours: Outputs, theirs: Outputs, name: str, bound: float) -> bool:
    if not ours.get(name) or not theirs.get(name):
        return bool(ours.get(name)) != bool(theirs.get(name))
    found, expected = (torch.cat([part.reshape(-1, part.shape[-1]) for part in of[name]]).float() for of in (ours, theirs))
    if found.shape != expected.shape:
        return True
    error = (found - expected).norm() / expected.norm().clamp(min=torch.finfo(expected.dtype).tiny)
    return not float(error) <= bound
