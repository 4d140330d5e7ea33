"""A target without some of its sublayers: a second module tree over the very same modules (Zhang et al. 2023, section 3.1).

A skipped attention or MLP, its norms included, contributes nothing: what came in passes through. No weight exists twice, packed
ones neither, for every module that computes something is the target's own.
"""

import copy
from dataclasses import dataclass
from typing import Any

from accelerate.hooks import add_hook_to_module
from torch import Tensor, nn

from specbench.decoding.language_model import LanguageModel
from specbench.errors import InputError

ATTENTION, MLP = "self_attn", "mlp"  # what transformers calls them in every decoder layer


@dataclass(frozen=True)
class SkipSet:
    """The sublayers left out, by 0-based layer number."""

    attention: tuple[int, ...]
    mlp: tuple[int, ...]

    @staticmethod
    def of(skipped: list[bool]) -> "SkipSet":
        """From 2L switches: attention of layers 0 to L - 1, then the MLPs, as the paper's search has them."""
        layers = len(skipped) // 2
        attention, mlp = skipped[:layers], skipped[layers:]
        return SkipSet(*(tuple(layer for layer in range(layers) if of[layer]) for of in (attention, mlp)))

    def to_switches(self, layers: int) -> list[bool]:
        """The opposite of `of`."""
        return [layer in of for of in (self.attention, self.mlp) for layer in range(layers)]


def count_layers(target: LanguageModel) -> int:
    """How many a target has, each of an attention and an MLP. Raises InputError where they are made of something else."""
    layers = getattr(target.model.get_decoder(), "layers", [])
    if not layers or not all(isinstance(getattr(layer, part, None), nn.Module) for layer in layers for part in (ATTENTION, MLP)):
        raise InputError(f"{target.config.model_type}: expected layers of {ATTENTION} and {MLP} each, which alone can be skipped")
    return len(layers)


def skip_sublayers(target: LanguageModel, skipped: SkipSet) -> LanguageModel:
    """The target without a skip set's sublayers. Raises InputError for an architecture in which they cannot be found."""
    count_layers(target)
    decoder = target.model.get_decoder()
    path = next(name for name, module in target.model.named_modules() if module is decoder)
    model = at = _copy_module(target.model)
    for part in path.split("."):
        setattr(at, part, _copy_module(getattr(at, part)))
        at = getattr(at, part)
    at.layers = nn.ModuleList(
        _skip_parts(layer, number in skipped.attention, number in skipped.mlp) for number, layer in enumerate(decoder.layers)
    )
    return LanguageModel(model)


def _skip_parts(layer: nn.Module, attention: bool, mlp: bool) -> nn.Module:
    if attention and mlp:
        return _empty_layer(layer)
    if attention or mlp:
        layer = _copy_module(layer)
        setattr(layer, ATTENTION if attention else MLP, _ZeroAttention() if attention else _ZeroMLP())
    return layer


def _copy_module(module: Any) -> Any:
    """The same module with a list of submodules of its own; what is in that list stays shared."""
    made = copy.copy(module)
    made._modules = dict(module._modules)
    hook = made.__dict__.pop("_hf_hook", None)
    if hook is not None:  # accelerate's, of a model spread over devices: the forward it left there is the original's
        del made.forward, made._old_forward
        add_hook_to_module(made, hook)
    return made


def _empty_layer(layer: nn.Module) -> nn.Module:
    """A layer in which nothing happens. It keeps its place: transformers looks up masks and rotations by it."""
    made = copy.copy(layer)
    made._modules = {}
    made.forward = _pass_through
    return made


def _pass_through(hidden_states: Tensor, *_: object, **__: object) -> Tensor:
    return hidden_states


class _ZeroAttention(nn.Module):
    def forward(self, hidden_states: Tensor, *_: object, **__: object) -> tuple[Tensor, None]:
        return hidden_states.new_zeros(hidden_states.shape), None


class _ZeroMLP(nn.Module):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states.new_zeros(hidden_states.shape)
