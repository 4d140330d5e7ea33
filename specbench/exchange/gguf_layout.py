"""How GGUF's architecture `llama` holds a Llama: names of tensors, order of rows, settings; and what it cannot hold.

llama.cpp rotates the pairs (2i, 2i + 1) of a head's dimensions, transformers the pairs (i, i + d/2). So the rows of q and k, and
their biases, are written in llama.cpp's order; attention scores are the same.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedModel

from specbench.errors import InputError, abbreviate

Setting = tuple[str, str, Any]  # the kind as GGUFWriter's methods name it, key, value
FILE_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 32}  # llama.cpp's numbers for a file of mostly that type
OUTPUT_BIAS = "lm_head.bias"
NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
ROPE_FACTORS = "rope_freqs.weight"


class GgufTensor(NamedTuple):
    """A tensor of a model and its name in the file. heads: of its rows, if they are rotated; else 0."""

    name: str
    tensor: Tensor
    heads: int

    @property
    def stored(self) -> Tensor:
        """The tensor as the file holds it: rows for llama.cpp's rotation, vectors in float32."""
        plain = self.tensor.detach().cpu()
        wide = plain.float() if plain.ndim == 1 else plain
        return pair_neighbours(wide, self.heads) if self.heads else wide

    def restore(self, stored: Tensor) -> Tensor:
        """Return a tensor of the file in transformers' order of rows."""
        return pair_halves(stored, self.heads) if self.heads else stored


def pair_neighbours(rows: Tensor, heads: int) -> Tensor:
    """(heads * d, ...) -> the same shape: dimensions i and i + d/2 of each head become 2i and 2i + 1."""
    return rows[torch.arange(len(rows)).view(heads, 2, -1).transpose(1, 2).flatten()]


def pair_halves(rows: Tensor, heads: int) -> Tensor:
    """(heads * d, ...) -> the same shape: the inverse of `pair_neighbours`."""
    order = torch.arange(len(rows)).view(heads, -1)
    return rows[torch.cat([order[:, 0::2], order[:, 1::2]], dim=1).flatten()]


def check_model(model: PreTrainedModel, output_bias: bool) -> None:
    """Raise InputError for what the file could not hold. output_bias: also for a bias on the output."""
    kind, config = type(model), model.config
    if kind is not LlamaForCausalLM:
        raise InputError(f"export gguf: only a Llama can be exported, not {kind.__name__}")
    if config.hidden_act != "silu":
        raise InputError(f"export gguf: hidden_act={config.hidden_act}: llama.cpp computes silu in a Llama")
    kinds = {tensor.dtype for tensor in model.state_dict().values()}
    if len(kinds) > 1 or not kinds <= FILE_TYPES.keys():
        names = " and ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
        raise InputError(f"export gguf: its weights are {names}; expected one of float32, float16 or bfloat16")
    rope, share = config.rope_parameters["rope_type"], config.rope_parameters.get("partial_rotary_factor", 1.0)
    if rope not in ("default", "linear", "llama3") or share != 1:
        what = f"rope_type={rope}" if share == 1 else f"partial_rotary_factor={share}"
        raise InputError(f"export gguf: {what}: expected rope_type default, linear or llama3 over whole heads")
    if unknown := [name for name in model.state_dict() if name != OUTPUT_BIAS and _translate(name) is None]:
        raise InputError(f"export gguf: GGUF's llama has no place for {abbreviate(unknown)}")
    if output_bias and OUTPUT_BIAS in model.state_dict():
        remedy = "--without-output-bias leaves it out: speed only, texts may differ"
        raise InputError(f"export gguf: GGUF's llama has no place for the bias on its output; {remedy}")


def list_tensors(model: PreTrainedModel, dtype: torch.dtype) -> Iterator[GgufTensor]:
    """Yield the tensors of a checked model, without a bias on the output, and the factors of a scaled rotation.

    dtype: of matrices.
    """
    config, tensors = model.config, model.state_dict()
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for name, tensor in tensors.items():
        if name == OUTPUT_BIAS or (name == "lm_head.weight" and config.tie_word_embeddings):
            continue
        translated = _translate(name) or ""
        yield GgufTensor(translated, tensor.to(dtype) if tensor.ndim > 1 else tensor, heads.get(translated.split(".")[-2], 0))
    if config.rope_parameters["rope_type"] == "llama3":
        yield GgufTensor(ROPE_FACTORS, compute_rope_factors(model), 0)


def compute_rope_factors(model: PreTrainedModel) -> Tensor:
    """Return (d/2,) float32: what each frequency of rope_theta is divided by."""
    scaled = model.get_buffer("model.rotary_emb.inv_freq").float().cpu()
    exponents = torch.arange(0, 2 * len(scaled), 2).float() / (2 * len(scaled))
    plain: Tensor = 1 / torch.tensor(model.config.rope_parameters["rope_theta"]) ** exponents
    return plain / scaled  # 1 to the last bit where a frequency is not scaled


def list_settings(model: PreTrainedModel, name: str, dtype: torch.dtype) -> list[Setting]:
    """Return what the file says about a checked model, without its vocabulary. dtype: of matrices."""
    config, rope = model.config, model.config.rope_parameters
    sizes = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "rope.dimension_count": config.head_dim,
    }
    settings: list[Setting] = [("string", "general.name", name), ("uint32", "general.file_type", FILE_TYPES[dtype])]
    settings += [("uint32", f"llama.{key}", size) for key, size in sizes.items()]
    settings += [("float32", "llama.attention.layer_norm_rms_epsilon", config.rms_norm_eps)]
    settings += [("float32", "llama.rope.freq_base", rope["rope_theta"])]
    if rope["rope_type"] == "linear":
        settings += [("string", "llama.rope.scaling.type", "linear"), ("float32", "llama.rope.scaling.factor", rope["factor"])]
    return settings


def _translate(name: str) -> str | None:
    """Return a tensor's name in the file; None if it has none."""
    module, _, kind = name.rpartition(".")
    layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", module)
    found = LAYER_NAMES.get(layer[2]) if layer else NAMES.get(module)
    if found is None or kind not in ("weight", "bias") or (kind == "bias" and "norm" in found):
        return None
    return f"blk.{layer[1]}.{found}.{kind}" if layer else f"{found}.{kind}"
