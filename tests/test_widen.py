"""A widened Llama computes the narrow one's logits."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.models.llama import modeling_llama

from specbench.errors import InputError
from specbench.zoo.widen import widened
from tests.tiny import SHAPE, prompts, tiny_model

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "specbench" / "zoo" / "target"
WIDE = {"hidden_size": 80, "intermediate_size": 112, "num_attention_heads": 10}
SAME = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def narrow(dtype: torch.dtype, **changes) -> LlamaForCausalLM:
    """A random Llama as the embedded target is one: no grouped heads, nothing tied, norms that differ from 1."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**SHAPE, "num_key_value_heads": 4, **changes}, num_hidden_layers=3)).to(dtype).eval()
    for name, weight in model.named_parameters():
        if "norm" in name or "bias" in name:
            weight.add_(torch.randn(weight.shape, dtype=dtype) * 0.3)
    return model


def logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    return model(input_ids=ids[None], use_cache=False).logits[0]


def exact_norm(self: modeling_llama.LlamaRMSNorm, x: Tensor) -> Tensor:
    """Llama's norm in the input's own dtype; transformers computes it in float32 whatever the model's."""
    return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)


@pytest.mark.parametrize("shape", [WIDE, SAME, {**WIDE, "num_attention_heads": 4}, {**SAME, "intermediate_size": 64}])
def test_equal_logits_in_float64(shape: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", exact_norm)
    model = narrow(torch.float64)
    wide = widened(model, **shape)
    assert wide.config.hidden_size == shape["hidden_size"] and wide.dtype == torch.float64
    for ids in prompts(6):
        worst = float((logits(wide, ids) - logits(model, ids)).abs().max())
        assert worst < 1e-9, f"{worst:.1e} off"


def test_equal_logits_in_float32() -> None:
    model = narrow(torch.float32)
    wide = widened(model, **WIDE)
    for ids in prompts(6):
        found, expected = logits(wide, ids), logits(model, ids)
        worst, scale = float((found - expected).abs().max()), float(expected.std())
        assert worst < 1e-3 * scale, f"{worst:.1e} off, logits' scale {scale:.1e}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_equal_greedy_tokens(dtype: torch.dtype) -> None:
    model = narrow(dtype)
    wide = widened(model, **WIDE)
    for ids in prompts(6):
        given = {"attention_mask": torch.ones_like(ids)[None], "do_sample": False, "max_new_tokens": 24, "eos_token_id": 1}
        assert wide.generate(ids[None], **given).tolist() == model.generate(ids[None], **given).tolist()


def test_widening_twice_gives_the_same_weights_and_leaves_torchs_random_state() -> None:
    model = narrow(torch.float32)
    torch.manual_seed(3)
    first = widened(model, **WIDE).state_dict()
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))
    second = widened(model, **WIDE).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_new_weights_are_there_to_be_read() -> None:
    """A column of zeros costs no less to read, but a compressing memory could tell: what cannot reach the output is random."""
    wide = widened(narrow(torch.float32), **WIDE)
    layer = wide.model.layers[0]
    for linear in (layer.self_attn.q_proj, layer.mlp.up_proj, wide.lm_head):
        assert (linear.weight[:, 32:] != 0).float().mean() > 0.99
    assert not layer.self_attn.o_proj.weight[:, 32:].any() and not layer.mlp.down_proj.weight[:, 48:].any()
    assert not wide.model.embed_tokens.weight[:, 32:].any()


REFUSED = {
    "grouped-query attention": lambda: narrow(torch.float32, num_key_value_heads=2),
    "tied embeddings": lambda: narrow(torch.float32, tie_word_embeddings=True),
    "qwen2": lambda: tiny_model("qwen2", layers=1),
    "mistral": lambda: tiny_model("mistral", layers=1),
}


@pytest.mark.parametrize("make", REFUSED.values(), ids=REFUSED.keys())
def test_other_models_are_refused(make) -> None:
    with pytest.raises(InputError, match="can be widened"):
        widened(make(), **WIDE)


@pytest.mark.parametrize("name", SAME)
def test_a_narrower_shape_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="narrower"):
        widened(narrow(torch.float32), **{**WIDE, name: SAME[name] - 1})


@pytest.mark.parametrize("biased", ["attention_bias", "mlp_bias"])
def test_a_llama_with_biases_is_refused(biased: str) -> None:
    with pytest.raises(InputError, match="without biases"):
        widened(narrow(torch.float64, **{biased: True}), **WIDE)


@pytest.mark.skipif(not (SHIPPED / "model.safetensors").is_file(), reason="specbench/zoo/target holds no model.safetensors yet")
def test_the_shipped_target_at_100m_writes_its_own_tokens() -> None:
    shape = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "target" / "mini.yaml").shapes["100m"])
    model = AutoModelForCausalLM.from_pretrained(SHIPPED, dtype=torch.float32).eval()
    wide = widened(model, **shape)  # type: ignore[arg-type]
    assert 90e6 < sum(weight.numel() for weight in wide.parameters()) < 110e6
    (ids,) = prompts(1, longest=20)
    found, expected = logits(wide, ids), logits(model, ids)
    assert float((found - expected).abs().max()) < 1e-3 * float(expected.std())
    given = {"attention_mask": torch.ones_like(ids)[None], "do_sample": False, "max_new_tokens": 8}
    assert wide.generate(ids[None], **given).tolist() == model.generate(ids[None], **given).tolist()
