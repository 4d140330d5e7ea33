"""Expand a small Llama to the shape of a large one with unchanged outputs (after Net2Net, Chen et al. 2016).

The large model costs what its shape costs and writes what the small one writes. The small one's weights are placed in it so:

- Hidden dimensions: the first h of H. The others stay zero in the residual stream, so norm weights are scaled by sqrt(h/H) and
  their eps by h/H.
- Head dimensions: the rotary pair (j, j + d/2) moves to (j D/d, j D/d + D/2), which has the same frequency. Queries are scaled by
  sqrt(D/d), because scores are divided by sqrt(D), and their other dimensions are zero.
- Heads: each in a query head of its own group; a group too small for its heads is repeated.
- MLP units and tokens: the first; other tokens have the logit NEVER. Layers: evenly spread, between layers that add nothing.

Weights that cannot reach the output are random, so that the bytes and the arithmetic are real.
"""

from collections.abc import Mapping, Sequence
from math import ceil, sqrt
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from specbench.errors import InputError

SEED = 17
SPREAD = 0.02  # SD of random weights
NEVER = -1e4  # logit of tokens the small model does not have; representable in float16
WRITES_HIDDEN = ("o_proj.weight", "down_proj.weight", "embed_tokens.weight")  # rows, or vectors looked up, of H dimensions
READS_HIDDEN = tuple(f"{name}_proj.weight" for name in ("q", "k", "v", "gate", "up"))
SIZES = (  # of a shape; missing ones stay as in the model, but key-value heads default to the given number of heads
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("vocab_size", "max_position_embeddings"),
)


def expand_config(model: PreTrainedModel, shape: Mapping[str, int]) -> LlamaConfig:
    """Return the large model's config, with the small one's sizes in `expanded_from`.

    Raises InputError for another architecture or a shape that does not fit the model.
    """
    old = model.config
    biased = any(name.endswith(".bias") for name, _ in model.named_parameters())
    if not isinstance(model, LlamaForCausalLM):
        raise InputError(f"shape: only a Llama can be expanded, not {type(model).__name__}")
    if old.tie_word_embeddings or biased:
        raise InputError(f"shape: a Llama with {'biases' if biased else 'tied embeddings'} cannot be expanded")
    if not isinstance(shape, Mapping):
        raise InputError(f"shape: {shape} is not a mapping of sizes; expected some of {', '.join(SIZES)}")
    if "num_attention_heads" in shape and "num_key_value_heads" not in shape:
        shape = {**shape, "num_key_value_heads": shape["num_attention_heads"]}
    sizes = {name: getattr(old, name) for name in SIZES}
    for name, size in shape.items():
        if name not in SIZES:
            raise InputError(f"shape: {name} is not a size of a shape; expected {', '.join(SIZES)}")
        if type(size) is not int:
            raise InputError(f"shape: {name}={size}: expected a whole number")
        if size < sizes[name]:
            raise InputError(f"shape: {name}={size} is smaller than the model's {sizes[name]}")
    changed = {**sizes, **shape}
    changed["rms_norm_eps"] = old.rms_norm_eps * old.hidden_size / changed["hidden_size"]
    before = {name: getattr(old, name) for name in changed}
    try:
        new = LlamaConfig.from_dict({**old.to_dict(), **changed, "expanded_from": before})
    except StrictDataclassClassValidationError as error:
        raise InputError(f"shape: {error.__cause__ or error}") from None
    HeadMap(old, new)
    check_frequencies(old, new)
    return new


def check_frequencies(old: Any, new: Any) -> None:
    """Raise InputError if rope scaling gives the large heads other frequencies, because it depends on sizes."""
    try:
        with torch.device("cpu"):
            small, large = LlamaRotaryEmbedding(old), LlamaRotaryEmbedding(new)
        same = small.attention_scaling == large.attention_scaling
        same &= torch.allclose(small.inv_freq, large.inv_freq[:: new.head_dim // old.head_dim])
    except RuntimeError:  # factors per dimension, whose number has changed
        same = False
    if not same:
        kind = old.rope_parameters["rope_type"]
        raise InputError(f"shape: under rope_type={kind} its heads or positions have other frequencies")


def get_small_sizes(config: Any) -> dict[str, Any]:
    """Return the sizes of the model that was expanded into this one; empty if none was."""
    return cast(dict[str, Any], getattr(config, "expanded_from", {}))


def map_layer(layer: int, config: Any) -> int:
    """Return the index of a small model's layer (or its number of layers) in the model of this config."""
    layers: int = config.num_hidden_layers
    return layer * layers // int(get_small_sizes(config).get("num_hidden_layers", layers))


class HeadMap:
    """Positions of an attention's heads and their dimensions in a larger one.

    query, key: old row of each new row, or -1; dims: old dimension of each new one of a head, or -1. silent: new rows of old
    query heads, which must be zero; silent_keys: of old key heads, where keys are normalised. old, new: configs with
    num_attention_heads, num_key_value_heads and head_dim. Raises InputError.
    """

    def __init__(self, old: Any, new: Any) -> None:
        group, new_group = (_compute_group(config) for config in (old, new))
        copies = ceil(group / new_group)  # of a key-value head
        if new.num_key_value_heads < copies * old.num_key_value_heads:
            raise InputError(
                f"shape: {new.num_key_value_heads} key-value heads with {new_group} query heads each do not hold the model's "
                f"{old.num_key_value_heads} with {group} each"
            )
        self.dims = dims = _map_dims(old.head_dim, new.head_dim)
        heads = torch.arange(old.num_attention_heads)
        new_groups = heads // group * copies + heads % group // new_group
        query, key = torch.full((new.num_attention_heads,), -1), torch.full((new.num_key_value_heads,), -1)
        query[new_groups * new_group + heads % group % new_group] = heads
        key[: copies * old.num_key_value_heads] = torch.arange(old.num_key_value_heads).repeat_interleave(copies)
        self.query, self.key = _map_rows(query, dims, old.head_dim), _map_rows(key, dims, old.head_dim)
        self.silent = (self.query < 0) & (query >= 0).repeat_interleave(new.head_dim)
        self.silent_keys = (self.key < 0) & (key >= 0).repeat_interleave(new.head_dim)
        self.scale = sqrt(new.head_dim / old.head_dim)


def _compute_group(config: Any) -> int:
    """Return the number of query heads per key-value head. Raises InputError."""
    heads, shared = int(config.num_attention_heads), int(config.num_key_value_heads)
    if heads % shared:
        raise InputError(f"shape: {heads} heads cannot share {shared} key-value heads evenly")
    return heads // shared


def _map_dims(old: int, new: int) -> Tensor:
    """Return the old dimension of each new head dimension, or -1. Raises InputError if frequencies do not coincide."""
    if new % old:
        raise InputError(f"shape: head_dim={new} is not a multiple of the model's {old}")
    dims = torch.full((new,), -1)
    pairs = torch.arange(old // 2)
    dims[pairs * new // old], dims[pairs * new // old + new // 2] = pairs, pairs + old // 2
    return dims


def _map_rows(heads: Tensor, dims: Tensor, old_dims: int) -> Tensor:
    rows = heads[:, None] * old_dims + dims
    return torch.where((heads[:, None] >= 0) & (dims >= 0), rows, -1).flatten()


def expand_model(model: PreTrainedModel, shape: Mapping[str, int], device: torch.device | None = None) -> LlamaForCausalLM:
    """Expand a model to this shape, in its own dtype, on the device (by default the model's). Raises InputError."""
    config, device = expand_config(model, shape), device or model.device
    with torch.device("meta"):
        large: Any = LlamaForCausalLM(config)
        large = large.to(model.dtype)
        if config.vocab_size > model.config.vocab_size:
            large.lm_head = add_bias(large.lm_head)
    large = large.to_empty(device=device)
    large.model.rotary_emb = LlamaRotaryEmbedding(config).to(device)
    small = model.state_dict() | {"lm_head.bias": torch.zeros(model.config.vocab_size)}
    names = {map_layer(layer, config): str(layer) for layer in range(model.config.num_hidden_layers)}
    fill = TensorFiller(HeadMap(model.config, config), device)
    for name, weight in large.named_parameters():
        fill(name, weight, small.get(_find_old_name(name, names)), name.endswith(WRITES_HIDDEN))
    large.generation_config = model.generation_config
    return cast(LlamaForCausalLM, large.eval())


def _find_old_name(name: str, layers: Mapping[int, str]) -> str:
    """Return the tensor's name in the small model, or a name that the small model does not have."""
    parts = name.split(".")
    if parts[1] == "layers":
        parts[2] = layers.get(int(parts[2]), "new")
    return ".".join(parts)


def add_bias(linear: nn.Linear) -> nn.Linear:
    """Return an empty layer of the same size with a bias, which can be NEVER."""
    return nn.Linear(linear.in_features, linear.out_features, device="meta", dtype=linear.weight.dtype)


class TensorFiller:
    """Fills the tensors of a large model, in order, from a small one's and a seed. qk_norms: queries and keys are normalised."""

    def __init__(self, heads: HeadMap, device: torch.device, qk_norms: bool = False) -> None:
        self.heads, self.qk_norms = heads, qk_norms
        self._random = torch.Generator(device).manual_seed(SEED)

    @torch.no_grad()
    def __call__(
        self, name: str, large: Tensor, small: Tensor | None, writes_hidden: bool, vectors: int = 1, others: int = 0
    ) -> None:
        """Fill one tensor. small: None in new layers. writes_hidden: its rows, or embeddings, are of the residual stream.

        vectors: number of concatenated hidden vectors it reads. others: how many of its last inputs are not hidden dimensions.
        A bias that belongs to neither hidden dimensions nor heads belongs to tokens.
        """
        module, kind = name.split(".")[-2:]
        norm = large.ndim == 1 and kind == "weight"
        of_heads = module in ("q_proj", "k_proj", "v_proj")
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
        if module == "k_proj" and self.qk_norms:
            large[self.heads.silent_keys.to(large.device)] = 0
        if module == "embed_tokens":  # new tokens, which never occur, have random embeddings
            large[len(small) :, : small.shape[1]].normal_(0, SPREAD, generator=self._random)
        scale = sqrt(len(small) / len(large)) if norm else 1.0
        if module in ("q_proj", "q_norm"):  # scores are divided by the root of a head's dimensions
            scale *= self.heads.scale
        _copy(large, small, scale, self._map_axes(module, large, small, vectors, others))

    def _map_axes(self, module: str, large: Tensor, small: Tensor, vectors: int, others: int) -> list[Tensor]:
        """Return per axis the old index of each new one, or -1."""
        of_heads = {"q_proj": self.heads.query, "k_proj": self.heads.key, "v_proj": self.heads.key}
        rows = of_heads.get(module, _map_first(len(small), len(large)))
        if module in ("q_norm", "k_norm"):
            return [self.heads.dims]
        if large.ndim == 1:
            return [rows if module in of_heads or vectors == 1 else _map_first(len(small), len(large), vectors)]
        if module == "o_proj":
            return [rows, self.heads.query]
        last = small.shape[1] - others + torch.arange(others)
        return [rows, torch.cat([_map_first(small.shape[1] - others, large.shape[1] - others, vectors), last])]


def _map_first(old: int, new: int, vectors: int = 1) -> Tensor:
    """Return the old index of each new one, or -1: the old ones come first in each of `vectors` equal parts."""
    index = torch.full((vectors, new // vectors), -1)
    index[:, : old // vectors] = torch.arange(old).view(vectors, -1)
    return index.flatten()


def _copy(large: Tensor, small: Tensor, scale: float, axes: Sequence[Tensor]) -> None:
    small = small.to(large.device, torch.promote_types(small.dtype, large.dtype)) * scale
    new = [(axis >= 0).nonzero()[:, 0] for axis in axes]
    old = [axis[kept] for axis, kept in zip(axes, new, strict=True)]
    to, of = (torch.meshgrid(*(index.to(large.device) for index in indices), indexing="ij") for indices in (new, old))
    large[to] = small[of].to(large.dtype)
