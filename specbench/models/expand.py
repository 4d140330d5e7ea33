"""A small Llama at the full shape of a large one, its outputs unchanged (after Net2Net, Chen et al. 2016).

The large model costs what its shape costs and writes what the small one writes. What the small one has lies in it thus:

- Hidden dimensions: the first h of H. All that writes to the residual stream leaves the others zero, so the norms see h of H
  dimensions: their weights are scaled by sqrt(h/H), their eps by h/H.
- Dimensions of a head: the rotary pair (j, j + d/2) goes to (j D/d, j D/d + D/2), where the frequencies are the same; queries are
  scaled by sqrt(D/d), for scores are divided by sqrt(D), and their other dimensions are zero.
- Heads: each to a query head of its own group; a group too small for its heads is there more than once.
- MLP units: the first; layers: spread evenly, between layers that add nothing; tokens: the first, the others' logits NEVER.

All that cannot reach the output is random, so that the bytes and the arithmetic are real.
"""

from collections.abc import Mapping, Sequence
from math import ceil, sqrt
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from specbench.errors import InputError

SEED = 17
SPREAD = 0.02  # SD of random weights
NEVER = -1e4  # logit of a token that the small model does not know; float16 holds it
WRITES_HIDDEN = ("o_proj.weight", "down_proj.weight", "embed_tokens.weight")  # rows, or vectors looked up, of H dimensions
READS_HIDDEN = tuple(f"{name}_proj.weight" for name in ("q", "k", "v", "gate", "up"))
SIZES = {  # of a shape, by transformers' names; without one it keeps the model's, but heads without key-value heads share none
    "hidden_size": "hidden dimensions",
    "intermediate_size": "MLP units",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "num_key_value_heads": "key-value heads",
    "head_dim": "dimensions of a head",
    "vocab_size": "tokens",
    "max_position_embeddings": "positions",
}


def expand_config(model: PreTrainedModel, shape: Mapping[str, int]) -> LlamaConfig:
    """The large model's config; its `expanded_from` holds the small one's sizes.

    Raises InputError for another architecture and for a shape that the model does not fit.
    """
    old, biased = model.config, any(name.endswith(".bias") for name, _ in model.named_parameters())
    if not isinstance(model, LlamaForCausalLM):
        raise InputError(f"shape: only a Llama can be expanded, not {type(model).__name__}")
    if old.tie_word_embeddings or biased:
        raise InputError(f"shape: a Llama with {'biases' if biased else 'tied embeddings'} cannot be expanded")
    if not isinstance(shape, Mapping):
        raise InputError(f"shape: {shape} is no mapping of sizes; expected some of {', '.join(SIZES)}")
    if "num_attention_heads" in shape and "num_key_value_heads" not in shape:
        shape = {**shape, "num_key_value_heads": shape["num_attention_heads"]}
    sizes = {name: getattr(old, name) for name in SIZES}
    for name, size in shape.items():
        if name not in SIZES:
            raise InputError(f"shape: {name} is no size of a shape; expected {', '.join(SIZES)}")
        if type(size) is not int:
            raise InputError(f"shape: {name}={size}: expected a whole number")
        if size < sizes[name]:
            raise InputError(f"shape: {name}={size} is smaller than the model's, {sizes[name]} {SIZES[name]}")
    changed = {**sizes, **shape, "rms_norm_eps": old.rms_norm_eps * old.hidden_size / {**sizes, **shape}["hidden_size"]}
    before = {name: getattr(old, name) for name in changed}
    try:
        made = LlamaConfig.from_dict({**old.to_dict(), **changed, "expanded_from": before})
    except StrictDataclassClassValidationError as error:
        raise InputError(f"shape: {error.__cause__ or error}") from None
    HeadMap(old, made)
    _check_frequencies(old, made)
    return made


def _check_frequencies(old: Any, new: Any) -> None:
    """Raises InputError where a rope scaling that counts dimensions or positions gives the large heads other frequencies."""
    try:
        with torch.device("cpu"):
            had, has = LlamaRotaryEmbedding(old), LlamaRotaryEmbedding(new)
        same = had.attention_scaling == has.attention_scaling
        same &= torch.allclose(had.inv_freq, has.inv_freq[:: new.head_dim // old.head_dim])
    except RuntimeError:  # a factor for each dimension, of which there are others now
        same = False
    if not same:
        raise InputError(
            f"shape: under rope_type={old.rope_parameters['rope_type']} its heads or positions have other frequencies"
        )


def get_small_sizes(config: Any) -> dict[str, Any]:
    """Sizes of the model that was expanded into this one; empty for a model that was not."""
    return getattr(config, "expanded_from", {})


def map_layer(layer: int, config: Any) -> int:
    """Where a layer of the small model stands in the model of this config; the number of its layers becomes that of all."""
    there = config.num_hidden_layers
    return layer * there // get_small_sizes(config).get("num_hidden_layers", there)


class HeadMap:
    """Where the heads of one attention lie in a larger one, and their dimensions.

    query, key: by new row, the old one or -1. silent: new rows of old queries, which have to be zero.
    old, new: num_attention_heads, num_key_value_heads and head_dim. Raises InputError.
    """

    def __init__(self, old: Any, new: Any) -> None:
        group, new_group = (_compute_group(config) for config in (old, new))
        copies = ceil(group / new_group)  # of a key-value head
        if new.num_key_value_heads < copies * old.num_key_value_heads:
            raise InputError(
                f"shape: {new.num_key_value_heads} key-value heads with {new_group} query heads each do not hold the model's "
                f"{old.num_key_value_heads} with {group} each"
            )
        dims = _map_dims(old.head_dim, new.head_dim)
        heads = torch.arange(old.num_attention_heads)
        within, place_ = heads // group * copies + heads % group // new_group, heads % group % new_group
        query, key = (torch.full((count,), -1) for count in (new.num_attention_heads, new.num_key_value_heads))
        query[within * new_group + place_] = heads
        key[: copies * old.num_key_value_heads] = torch.arange(old.num_key_value_heads).repeat_interleave(copies)
        self.query, self.key = _map_rows(query, dims, old.head_dim), _map_rows(key, dims, old.head_dim)
        self.silent = (self.query < 0) & (query >= 0).repeat_interleave(new.head_dim)
        self.scale = sqrt(new.head_dim / old.head_dim)


def _compute_group(config: Any) -> int:
    """Query heads for each key-value head."""
    if config.num_attention_heads % config.num_key_value_heads:
        heads, shared = config.num_attention_heads, config.num_key_value_heads
        raise InputError(f"shape: {heads} heads cannot share {shared} key-value heads evenly")
    return config.num_attention_heads // config.num_key_value_heads


def _map_dims(old: int, new: int) -> Tensor:
    """By dimension of a new head, the old one or -1. Raises InputError where the frequencies are not among the new ones."""
    if new % old:
        raise InputError(f"shape: head_dim={new} is no multiple of the model's {old}")
    found = torch.full((new,), -1)
    pairs = torch.arange(old // 2)
    found[pairs * new // old], found[pairs * new // old + new // 2] = pairs, pairs + old // 2
    return found


def _map_rows(heads: Tensor, dims: Tensor, old_dims: int) -> Tensor:
    rows = heads[:, None] * old_dims + dims
    return torch.where((heads[:, None] >= 0) & (dims >= 0), rows, -1).flatten()


def expand_model(model: PreTrainedModel, shape: Mapping[str, int], device: torch.device | None = None) -> LlamaForCausalLM:
    """The model at this shape, in its own dtype, tensor by tensor on the device (by default the model's). Raises InputError."""
    config, there = expand_config(model, shape), device or model.device
    with torch.device("meta"):
        large = LlamaForCausalLM(config).to(model.dtype)  # type: ignore[arg-type]
        if config.vocab_size > model.config.vocab_size:
            large.lm_head = add_bias(large.lm_head)
    large = large.to_empty(device=there)
    large.model.rotary_emb = LlamaRotaryEmbedding(config).to(there)
    small = model.state_dict() | {"lm_head.bias": torch.zeros(model.config.vocab_size)}
    names = {map_layer(layer, config): str(layer) for layer in range(model.config.num_hidden_layers)}
    lay = TensorFiller(HeadMap(model.config, config), there)
    for name, weight in large.named_parameters():
        lay(name, weight, small.get(_find_old_name(name, names)), name.endswith(WRITES_HIDDEN))
    large.generation_config = model.generation_config
    return large.eval()


def _find_old_name(name: str, layers: Mapping[int, str]) -> str:
    """The same tensor's in the small model, or one that it does not have."""
    parts = name.split(".")
    if parts[1] == "layers":
        parts[2] = layers.get(int(parts[2]), "new")
    return ".".join(parts)


def add_bias(linear: nn.Linear) -> nn.Linear:
    """One of the same size with a bias, which can say NEVER; empty."""
    return nn.Linear(linear.in_features, linear.out_features, device="meta", dtype=linear.weight.dtype)


class TensorFiller:
    """Fills the tensors of a large model, one after the other, from a small one's and a seed."""

    def __init__(self, heads: HeadMap, device: torch.device) -> None:
        self.heads = heads
        self._random = torch.Generator(device).manual_seed(SEED)

    @torch.no_grad()
    def __call__(self, name: str, large: Tensor, small: Tensor | None, writes_hidden: bool, beside: int = 1) -> None:
        """small: None for a tensor of a new layer. writes_hidden: its rows, or what is looked up, are of the residual stream.

        beside: it reads so many hidden vectors side by side. A bias of neither hidden dimensions nor heads is of tokens.
        """
        module, kind = name.split(".")[-2:]
        norm, of_heads = large.ndim == 1 and kind == "weight", module in ("q_proj", "k_proj", "v_proj")
        if norm:
            large.fill_(1)
        elif writes_hidden or (kind == "bias" and of_heads):
            large.zero_()
        elif kind == "bias":
            large.fill_(NEVER)
        else:
            large.normal_(0, SPREAD, generator=self._random)
        if small is None:
            return
        if module == "q_proj":
            large[self.heads.silent.to(large.device)] = 0
        if module == "embed_tokens":  # of new tokens, which nobody writes, random as well
            large[len(small) :, : small.shape[1]].normal_(0, SPREAD, generator=self._random)
        scale = sqrt(len(small) / len(large)) if norm else self.heads.scale if module == "q_proj" else 1.0
        _copy(large, small, scale, self._map_axes(module, large, small, beside))

    def _map_axes(self, module: str, large: Tensor, small: Tensor, beside: int) -> list[Tensor]:
        """By axis and new index, the old one or -1."""
        of_heads = {"q_proj": self.heads.query, "k_proj": self.heads.key, "v_proj": self.heads.key}
        rows = of_heads.get(module, _map_first(len(small), len(large)))
        if large.ndim == 1:
            return [rows]
        if module == "o_proj":
            return [rows, self.heads.query]
        return [rows, _map_first(small.shape[1], large.shape[1], beside)]


def _map_first(old: int, new: int, beside: int = 1) -> Tensor:
    """The old ones first, in each of `beside` equal parts."""
    found = torch.full((beside, new // beside), -1)
    found[:, : old // beside] = torch.arange(old).view(beside, -1)
    return found.flatten()


def _copy(large: Tensor, small: Tensor, scale: float, axes: Sequence[Tensor]) -> None:
    small = small.to(large.device, torch.promote_types(small.dtype, large.dtype)) * scale
    new = [(axis >= 0).nonzero()[:, 0] for axis in axes]
    old = [axis[there] for axis, there in zip(axes, new, strict=True)]
    to, of = (torch.meshgrid(*places, indexing="ij") for places in (new, old))
    large[tuple(index.to(large.device) for index in to)] = small[tuple(index.to(large.device) for index in of)].to(large.dtype)
