"""Function-preserving widening (Net2Net, Chen et al. 2016): a small Llama at the cost of a large one, its outputs unchanged.

New dimensions of the residual stream carry zeros, so the norms see h of H dimensions: their weights are scaled by sqrt(h/H) and
eps by h/H. New heads and MLP units have zero output columns. All that cannot reach the output is random, so that the bytes and
the arithmetic are real.
"""

import math
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from specbench.errors import InputError

SEED = 17
WRITES_HIDDEN = ("o_proj.weight", "down_proj.weight", "embed_tokens.weight")  # rows, or vectors looked up, of H dimensions


def widened(model: PreTrainedModel, hidden_size: int, intermediate_size: int, num_attention_heads: int) -> LlamaForCausalLM:
    """A wider Llama computing the same logits; head size and layers stay. Raises InputError for another architecture."""
    old = model.config
    biased = any(name.endswith(".bias") for name, _ in model.named_parameters())
    if (
        not isinstance(model, LlamaForCausalLM)
        or old.num_attention_heads != old.num_key_value_heads
        or old.tie_word_embeddings
        or biased
    ):
        raise InputError(f"shape: only a Llama without biases, ungrouped and untied, can be widened, not {type(model).__name__}")
    if (
        hidden_size < old.hidden_size
        or intermediate_size < old.intermediate_size
        or num_attention_heads < old.num_attention_heads
    ):
        raise InputError(
            f"shape: hidden size {hidden_size} is narrower than the model's {old.hidden_size} or lacks heads or units"
        )
    wide = _random(model.config, hidden_size, intermediate_size, num_attention_heads)
    wide = wide.to(model.dtype)  # type: ignore[arg-type]
    narrow = model.state_dict()
    with torch.no_grad():
        for name, weight in wide.state_dict().items():
            laid(weight, narrow[name], name.endswith(WRITES_HIDDEN))
    wide.generation_config = model.generation_config
    return wide.eval()


def _random(old: LlamaConfig, hidden: int, intermediate: int, heads: int) -> LlamaForCausalLM:
    changed: dict[str, Any] = {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": old.head_dim,
        "rms_norm_eps": old.rms_norm_eps * old.hidden_size / hidden,
    }
    changed["widened_from"] = {name: getattr(old, name) for name in changed}
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        return LlamaForCausalLM(LlamaConfig.from_dict({**old.to_dict(), **changed}))


def laid(wide: Tensor, narrow: Tensor, writes_hidden: bool, beside: int = 1) -> None:
    """Lay a narrow weight into a wide one, which is random before and stays so where nothing reaches the output.

    writes_hidden: its rows are dimensions of the residual stream. beside: it reads so many hidden vectors side by side.
    """
    if not wide.is_floating_point():
        wide.copy_(narrow)
    elif wide.ndim == 1:
        _laid_vector(wide, narrow, writes_hidden)
    else:
        if writes_hidden:
            wide.zero_()
        columns = wide.view(len(wide), beside, -1)  # a view: what is written there is in `wide`
        columns[: len(narrow), :, : narrow.shape[1] // beside] = narrow.view(len(narrow), beside, -1)


def _laid_vector(wide: Tensor, narrow: Tensor, is_bias: bool) -> None:
    """A bias of hidden dimensions, else a norm's weight."""
    if is_bias:
        wide.zero_()
    wide[: len(narrow)] = narrow if is_bias else narrow * math.sqrt(len(narrow) / len(wide))
