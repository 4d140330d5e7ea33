"""A target without some of its sublayers: a second module tree over the same modules (Zhang et al. 2023, section 3.1).

A skipped attention or MLP, its norms included, contributes nothing to the residual stream. No weight is copied, packed ones
included: every module that computes something is the target's own.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.hooks import add_hook_to_module
from torch import Tensor, nn

from specbench.decoding.language_model import LanguageModel
from specbench.errors import InputError, format_error

ATTENTION, MLP = "self_attn", "mlp"  # their names in transformers' decoder layers


@dataclass(frozen=True)
class SkipSet:
    """The skipped sublayers, by 0-based layer number."""

    attention: tuple[int, ...]
    mlp: tuple[int, ...]

    @staticmethod
    def of(skipped: list[bool]) -> "SkipSet":
        """Build from 2L switches, as in the paper's search: attention of layers 0 to L - 1, then the MLPs."""
        layers = len(skipped) // 2
        return SkipSet(*(tuple(i for i in range(layers) if part[i]) for part in (skipped[:layers], skipped[layers:])))

    def to_switches(self, layers: int) -> list[bool]:
        """Return the 2L switches; the inverse of `of`."""
        return [layer in part for part in (self.attention, self.mlp) for layer in range(layers)]


def count_layers(target: LanguageModel) -> int:
    """Return a target's number of layers. Raises InputError unless each has an attention and an MLP."""
    layers = getattr(target.decoder, "layers", [])
    if not layers or not all(isinstance(getattr(layer, part, None), nn.Module) for layer in layers for part in (ATTENTION, MLP)):
        raise InputError(f"{target.config.model_type}: only layers made of {ATTENTION} and {MLP} can be skipped")
    return len(layers)


def skip_sublayers(target: LanguageModel, skipped: SkipSet) -> LanguageModel:
    """Return the target without a skip set's sublayers. Raises InputError for an architecture without such layers."""
    count_layers(target)
    decoder: Any = target.decoder
    path = next(name for name, module in target.model.named_modules() if module is decoder)
    model = module = _copy_module(target.model)
    for part in path.split("."):
        setattr(module, part, _copy_module(getattr(module, part)))
        module = getattr(module, part)
    module.layers = nn.ModuleList(
        _skip_parts(layer, number in skipped.attention, number in skipped.mlp) for number, layer in enumerate(decoder.layers)
    )
    return _try_out(LanguageModel(model))


@torch.inference_mode()
def _try_out(thin: LanguageModel) -> LanguageModel:
    """Raise InputError where a layer does not run without its parts, such as experts that return more than hidden states."""
    try:
        thin.prefill(thin.create_store(2), [torch.zeros(2, dtype=torch.long, device=thin.device)])
    except Exception as error:
        raise InputError(f"{thin.config.model_type}: parts of its layers cannot be skipped: {format_error(error)}") from None
    return thin


def _skip_parts(layer: nn.Module, attention: bool, mlp: bool) -> nn.Module:
    if attention and mlp:
        return _empty_layer(layer)
    if attention or mlp:
        layer = _copy_module(layer)
        setattr(layer, ATTENTION if attention else MLP, _ZeroAttention() if attention else _ZeroMLP())
    return layer


def _copy_module(module: Any) -> Any:
    """Return a copy of a module with its own list of submodules; the submodules stay shared."""
    duplicate = copy.copy(module)
    duplicate._modules = dict(module._modules)
    hook = duplicate.__dict__.pop("_hf_hook", None)
    if hook is not None:  # accelerate's, of a model spread over devices; its forward is bound to the original
        del duplicate.forward, duplicate._old_forward
        add_hook_to_module(duplicate, hook)
    return duplicate


def _empty_layer(layer: nn.Module) -> nn.Module:
    """Return a layer that passes its input through and keeps its index, by which transformers looks up masks and rotations."""
    empty = copy.copy(layer)
    empty._modules = {}
    empty.forward = lambda hidden_states, *_, **__: hidden_states
    return empty


class _ZeroAttention(nn.Module):
    def forward(self, hidden_states: Tensor, *_: object, **__: object) -> tuple[Tensor, None]:
        return hidden_states.new_zeros(hidden_states.shape), None


class _ZeroMLP(nn.Module):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states.new_zeros(hidden_states.shape)
