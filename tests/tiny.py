"""Small random models of several architectures, in float64 so that equal means equal."""

from typing import Any, cast

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from specbench.decoding.drafter import SequenceContext
from specbench.decoding.kv_store import KVStore
from specbench.decoding.language_model import LanguageModel
from specbench.decoding.verify import GREEDY

VOCABULARY = 128  # above 100, the token that Spec-Bench drafts where nothing matches
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "initializer_range": 0.4,
}
EXTRA: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 24},
    "qwen2": {},
    "qwen3": {"tie_word_embeddings": True},
    "gemma": {},
    "gemma2": {"sliding_window": 16, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 8},
    "gemma3_text": {"sliding_window": 16, "query_pre_attn_scalar": 8},
    "phi3": {"num_key_value_heads": 4},
    "olmo2": {},
    "starcoder2": {"sliding_window": 16},
    "llama4_text": {"attention_chunk_size": 16, "intermediate_size_mlp": 48, "num_local_experts": 2},
    "gpt_oss": {"sliding_window": 16, "num_local_experts": 4, "num_experts_per_tok": 2},
}
NO_CONTEXT = SequenceContext(KVStore(batch=1, capacity=1), GREEDY)  # of a drafter that draws nothing and reads no KV
ARCHITECTURES = ["llama", "qwen3", "mistral", "gemma"]


def tiny_model(
    architecture: str = "llama", layers: int = 3, seed: int = 0, dtype: torch.dtype = torch.float64
) -> PreTrainedModel:
    """A random model of a few thousand weights; equal arguments give equal weights."""
    config = AutoConfig.for_model(architecture, **{**SHAPE, **EXTRA[architecture]}, num_hidden_layers=layers)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        # the faster products of experts have no float64
        model: Any = AutoModelForCausalLM.from_config(config, experts_implementation="eager")  # type: ignore[no-untyped-call]
    return cast(PreTrainedModel, model.to(dtype).eval())


def tiny_language_model(architecture: str = "llama", layers: int = 3, seed: int = 0) -> LanguageModel:
    return LanguageModel(tiny_model(architecture, layers, seed))


def prompts(count: int, seed: int = 0, longest: int = 40) -> list[torch.Tensor]:
    """Random prompts of 2 to `longest` tokens, half of them built from a repeated motif so that lookups find something."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for i in range(count):
        length = int(torch.randint(2, longest, (1,), generator=generator))
        ids = torch.randint(2, VOCABULARY, (length,), generator=generator)
        made.append(ids[: max(2, length // 3)].repeat(3) if i % 2 else ids)
    return made
