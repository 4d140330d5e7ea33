"""Layers of the target's own class, for modules that continue it."""

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn
from transformers import PretrainedConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm

from specbench.decoding.language_model import LanguageModel
from specbench.drafters.network import FULL, TargetShape, build_layer_config
from specbench.errors import InputError


@dataclass(frozen=True)
class TargetLayers:
    """What a target builds its layers from; without one, Llama's. place: of its files: a folder, or a hub id and its revision."""

    layer: type[Any] = LlamaDecoderLayer
    norm: type[Any] = LlamaRMSNorm
    config: PretrainedConfig | None = None
    place: tuple[str, str | None] = "", None

    @staticmethod
    def of(target: LanguageModel) -> "TargetLayers":
        """Return those of the last layer, as transformers does. Raises InputError for norms other than RMSNorm."""
        if not hasattr(target.config, "rms_norm_eps"):
            raise InputError(
                f"mtp: the layers of {target.config.model_type} have norms other than RMSNorm, which are not supported"
            )
        last = target.layers[-1]
        norms = (type(module) for name, module in last.named_modules() if "norm" in name)
        config = target.model.config
        place = str(config.name_or_path), getattr(config, "_commit_hash", None)
        return TargetLayers(type(last), next(norms, LlamaRMSNorm), target.config, place)

    def build_config(self, config: Mapping[str, Any], shape: TargetShape) -> Any:
        """Return the target's config with the sizes of a drafter's config.json, else those of the shape."""
        if self.config is None:
            return build_layer_config(config, shape)
        own = copy.deepcopy(self.config)
        for name, size in asdict(shape).items():
            if hasattr(own, name) and name != "num_hidden_layers":
                setattr(own, name, config.get(name, size))
        return own

    def build_layer(self, config: Any, index: int) -> nn.Module:
        """Return a layer like the target's last one with full attention, which sees the whole text.

        Its keys and values are those of layer `index`.
        """
        kinds = getattr(config, "layer_types", None) or [FULL] * config.num_hidden_layers
        last = max(place for place, kind in enumerate(kinds) if kind == FULL or FULL not in kinds)
        layer: nn.Module = self.layer(config, last)
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index  # type: ignore[assignment]
            if hasattr(module, "sliding_window"):
                module.sliding_window = None  # type: ignore[assignment]
        return layer

    def build_norm(self, config: Any) -> nn.Module:
        norm: nn.Module = self.norm(config.hidden_size, eps=config.rms_norm_eps)
        return norm
