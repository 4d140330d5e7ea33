"""Weights of trained drafters in the layouts their authors publish: read, checked tensor by tensor, expanded, written."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, PretrainedConfig

from specbench.decoding import attention
from specbench.decoding.language_model import LanguageModel
from specbench.drafters.lesson import Lesson, LessonLoss
from specbench.models.expand import get_small_sizes


@dataclass(frozen=True)
class TargetShape:
    """The sizes of a target that drafters are made for, by transformers' names."""

    hidden_size: int
    vocab_size: int
    num_hidden_layers: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int

    @staticmethod
    def of(config: PretrainedConfig) -> "TargetShape":
        heads = config.num_attention_heads
        return TargetShape(
            hidden_size=config.hidden_size,
            vocab_size=config.vocab_size,
            num_hidden_layers=config.num_hidden_layers,
            intermediate_size=config.intermediate_size,
            num_attention_heads=heads,
            num_key_value_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            rms_norm_eps=getattr(config, "rms_norm_eps", 1e-6),
            max_position_embeddings=config.max_position_embeddings,
        )

    @staticmethod
    def of_base(config: PretrainedConfig) -> "TargetShape":
        """That of the target before it was expanded at load."""
        return replace(TargetShape.of(config), **get_small_sizes(config))

    def get_layer_sizes(self) -> dict[str, Any]:
        """Sizes of a decoder layer as wide as the target's, for a config.json."""
        return asdict(self) | {"num_hidden_layers": 1}


def build_layer_config(config: Mapping[str, Any], shape: TargetShape) -> LlamaConfig:
    """The config of a drafter's Llama layer, with our attention function: config.json's sizes, else the target's."""
    sizes = {**shape.get_layer_sizes(), **config}
    if "num_attention_heads" in config:  # a drafter with heads of its own
        sizes["num_key_value_heads"] = config.get("num_key_value_heads") or config["num_attention_heads"]
        sizes["head_dim"] = config.get("head_dim") or sizes["hidden_size"] // config["num_attention_heads"]
    taken = {name: sizes[name] for name in (*shape.get_layer_sizes(), "hidden_act") if name in sizes}
    made = LlamaConfig(**taken, rope_parameters={"rope_type": "default", "rope_theta": config.get("rope_theta") or 10000.0})
    made._attn_implementation = attention.NAME
    return made


class DraftNetwork(nn.Module):
    """A drafter's weights. Module names are the authors' tensor names, so that its state dict is their checkpoint.

    Built from a checkpoint's config.json and the shape of the target it was trained for.
    """

    files: ClassVar[tuple[str, ...]]  # the authors' own file names; model.safetensors is always known
    unused: ClassVar[tuple[str, ...]] = ()  # beginnings of tensor names that a checkpoint may hold and nothing reads
    writes_hidden: ClassVar[tuple[str, ...]] = ()  # ends of the names of weights whose rows are hidden dimensions
    beside: Mapping[str, int] = {}  # ends of the names of weights that read so many hidden vectors side by side
    packs: ClassVar[bool] = True  # whether its linear layers are called as they are, so that a CPU may pack their weights

    def __init__(self, config: Mapping[str, Any], shape: TargetShape) -> None:
        super().__init__()
        self.config, self.shape = dict(config), shape

    @classmethod
    def create_config(cls, shape: TargetShape) -> dict[str, Any]:
        """config.json of a new network for a target."""
        raise NotImplementedError

    @classmethod
    def normalise_checkpoint(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """config.json and tensors of a published checkpoint without their quirks."""
        return config, tensors

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def taps(self) -> tuple[int, ...]:
        """The hidden states it reads, by layer of the target it was trained for: by default the final norm's output."""
        return (self.shape.num_hidden_layers,)

    def attach_target(self, target: LanguageModel) -> None:
        """Take what the network shares with its target, such as the output head."""

    def prepare(self) -> None:
        """Lay the weights for drafting; called when they are in place and will not change."""

    def init_weights(self, target: LanguageModel) -> None:
        """The weights that training starts from, where random ones are not what the paper takes."""

    def compute_loss(self, lesson: Lesson) -> LessonLoss:
        """The paper's loss on a batch of conversations."""
        raise NotImplementedError


Network = TypeVar("Network", bound=DraftNetwork)


def embedding_scale(target: LanguageModel) -> float:
    """What brings the target's embeddings, often much smaller, to an RMS of one, about that of hidden states behind a norm."""
    return 1 / target.embedding.weight.detach().float().pow(2).mean().sqrt().item()  # type: ignore[union-attr, operator]
