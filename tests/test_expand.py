"""An expanded Llama computes the small one's logits."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.models.llama import modeling_llama

from specbench import models
from specbench.errors import InputError
from specbench.zoo.expand import NEVER, expanded
from tests.tiny import SHAPE, VOCABULARY, prompts, tiny_model

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "specbench" / "zoo" / "target"
WIDE = {"hidden_size": 80, "intermediate_size": 112, "num_attention_heads": 10}
SAME = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
DEEP = {"num_hidden_layers": 8}
LONG_HEADS = {"head_dim": 32}
GROUPED = {
    "hidden_size": 48,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
}  # of an ungrouped model: each head to a group of its own
WORDY = {"vocab_size": 300}
ALL = {**WIDE, **DEEP, **LONG_HEADS, **WORDY, "num_attention_heads": 20, "num_key_value_heads": 5, "max_position_embeddings": 512}
SHAPES = {
    "wide": WIDE,
    "same": SAME,
    "same heads": {**WIDE, "num_attention_heads": 4},
    "more units": {**SAME, "intermediate_size": 64},
    "deep": DEEP,
    "long heads": LONG_HEADS,
    "grouped": GROUPED,
    "wordy": WORDY,
    "all": ALL,
}


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def narrow(dtype: torch.dtype, **changes) -> LlamaForCausalLM:
    """A random Llama as the embedded target is one: nothing tied, norms that differ from 1; heads ungrouped unless told."""
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


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_equal_logits_in_float64(shape: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", exact_norm)
    model = narrow(torch.float64)
    large = expanded(model, shape)
    assert all(getattr(large.config, name) == size for name, size in shape.items()) and large.dtype == torch.float64
    check_logits(large, model)


GROUPS = {  # heads and key-value heads, large
    "the same groups, more of them": (12, 4),
    "larger groups": (12, 2),
    "smaller groups, each there twice": (8, 4),
    "no groups": (6, 6),
}


@pytest.mark.parametrize(("heads", "shared"), GROUPS.values(), ids=GROUPS.keys())
def test_each_head_stays_with_its_own_group(heads: int, shared: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", exact_norm)
    model = narrow(torch.float64, hidden_size=48, num_attention_heads=6, num_key_value_heads=2)
    check_logits(
        expanded(model, {"hidden_size": 96, "num_attention_heads": heads, "num_key_value_heads": shared, "head_dim": 16}), model
    )


def check_logits(large: PreTrainedModel, model: PreTrainedModel) -> None:
    """Equal where the small model has tokens; the others are never said."""
    for ids in prompts(6):
        found, expected = logits(large, ids), logits(model, ids)
        worst = float((found[:, :VOCABULARY] - expected).abs().max())
        assert worst < 1e-9, f"{worst:.1e} off"
        assert (found[:, VOCABULARY:] < NEVER / 2).all()


def test_equal_logits_in_float32() -> None:
    model = narrow(torch.float32)
    large = expanded(model, ALL)
    for ids in prompts(6):
        found, expected = logits(large, ids)[:, :VOCABULARY], logits(model, ids)
        worst, scale = float((found - expected).abs().max()), float(expected.std())
        assert worst < 1e-3 * scale, f"{worst:.1e} off, logits' scale {scale:.1e}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_equal_greedy_tokens(dtype: torch.dtype) -> None:
    model = narrow(dtype)
    large = expanded(model, ALL)
    for ids in prompts(6):
        given = {"attention_mask": torch.ones_like(ids)[None], "do_sample": False, "max_new_tokens": 24, "eos_token_id": 1}
        assert large.generate(ids[None], **given).tolist() == model.generate(ids[None], **given).tolist()


def test_expanding_twice_gives_the_same_weights_and_leaves_torchs_random_state() -> None:
    model = narrow(torch.float32)
    torch.manual_seed(3)
    first = expanded(model, ALL).state_dict()
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))
    second = expanded(model, ALL).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_new_weights_are_there_to_be_read() -> None:
    """A column of zeros costs no less to read, but a compressing memory could tell: what cannot reach the output is random."""
    wide = expanded(narrow(torch.float32), WIDE)
    layer = wide.model.layers[0]
    for linear in (layer.self_attn.q_proj, layer.mlp.up_proj, wide.lm_head):
        assert (linear.weight[:, 32:] != 0).float().mean() > 0.99
    assert not layer.self_attn.o_proj.weight[:, 32:].any() and not layer.mlp.down_proj.weight[:, 48:].any()
    assert not wide.model.embed_tokens.weight[:, 32:].any()


REFUSED = {
    "tied embeddings": lambda: narrow(torch.float32, tie_word_embeddings=True),
    "qwen2": lambda: tiny_model("qwen2", layers=1),
    "mistral": lambda: tiny_model("mistral", layers=1),
}


@pytest.mark.parametrize("make", REFUSED.values(), ids=REFUSED.keys())
def test_other_models_are_refused(make) -> None:
    with pytest.raises(InputError, match="can be expanded"):
        expanded(make(), WIDE)


@pytest.mark.parametrize("name", [*SAME, "num_hidden_layers", "vocab_size", "max_position_embeddings"])
def test_a_smaller_shape_is_refused(name: str) -> None:
    model = narrow(torch.float32)
    with pytest.raises(InputError, match=f"shape: {name}=.* is smaller than the model's"):
        expanded(model, {name: getattr(model.config, name) - 1})


MISFITS = {
    "is no multiple of the model's 8": {"head_dim": 12},
    "cannot share 3 key-value heads evenly": {"num_attention_heads": 8, "num_key_value_heads": 3},
    "do not hold the model's 2 with 3 each": {"num_attention_heads": 6, "num_key_value_heads": 3},
    "not a multiple of the number of attention heads": {"num_attention_heads": 10, "num_key_value_heads": 5},
    "layers is no size of a shape": {"layers": 4},
}


@pytest.mark.parametrize(("said", "shape"), MISFITS.items(), ids=MISFITS.keys())
def test_a_shape_that_does_not_fit_is_refused(said: str, shape: dict[str, int]) -> None:
    model = narrow(torch.float32, hidden_size=48, num_attention_heads=6, num_key_value_heads=2)
    with pytest.raises(InputError, match=said):
        expanded(model, shape)


@pytest.mark.parametrize("biased", ["attention_bias", "mlp_bias"])
def test_a_llama_with_biases_is_refused(biased: str) -> None:
    with pytest.raises(InputError, match="without biases"):
        expanded(narrow(torch.float64, **{biased: True}), WIDE)


@pytest.mark.skipif(not (SHIPPED / "model.safetensors").is_file(), reason="specbench/zoo/target holds no model.safetensors yet")
def test_the_shipped_target_at_100m_writes_its_own_tokens() -> None:
    shape = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "target" / "mini.yaml").shapes["100m"])
    model = AutoModelForCausalLM.from_pretrained(SHIPPED, dtype=torch.float32).eval()
    wide = expanded(model, shape)  # type: ignore[arg-type]
    assert 90e6 < sum(weight.numel() for weight in wide.parameters()) < 110e6
    (ids,) = prompts(1, longest=20)
    found, expected = logits(wide, ids), logits(model, ids)
    assert float((found - expected).abs().max()) < 1e-3 * float(expected.std())
    given = {"attention_mask": torch.ones_like(ids)[None], "do_sample": False, "max_new_tokens": 8}
    assert wide.generate(ids[None], **given).tolist() == model.generate(ids[None], **given).tolist()


def test_what_does_not_fit_is_refused_before_it_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "free_memory_bytes", lambda device: 10**9)
    shape = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "target" / "mini.yaml").shapes["7b"])
    with pytest.raises(InputError, match=r"6.7 billion weights need 13.5 GB on cpu as float16, where 1.0 GB are free"):
        models.load_model(str(SHIPPED), dtype="float16", device="cpu", shape=shape)  # type: ignore[arg-type]
