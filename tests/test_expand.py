"""An expanded Llama computes the small one's logits."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.models.llama import modeling_llama

from specbench.errors import InputError
from specbench.models import load as models
from specbench.models.expand import NEVER, WRITES_HIDDEN, expand_model
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


def narrow(dtype: torch.dtype, **changes: Any) -> Any:
    """A random Llama as the embedded target is one: nothing tied, norms that differ from 1; heads ungrouped unless told."""
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(LlamaConfig(**{**SHAPE, "num_key_value_heads": 4, **changes}, num_hidden_layers=3))
    model = model.to(dtype).eval()
    for name, weight in model.named_parameters():
        if "norm" in name or "bias" in name:
            weight.add_(torch.randn(weight.shape, dtype=dtype) * 0.3)
    return model


def logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    return cast(Tensor, model(input_ids=ids[None], use_cache=False).logits[0])


def exact_norm(self: modeling_llama.LlamaRMSNorm, x: Tensor) -> Tensor:
    """Llama's norm in the input's own dtype; transformers computes it in float32 whatever the model's."""
    return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_equal_logits_in_float64(shape: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", exact_norm)
    model = narrow(torch.float64)
    large = expand_model(model, shape)
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
        expand_model(model, {"hidden_size": 96, "num_attention_heads": heads, "num_key_value_heads": shared, "head_dim": 16}),
        model,
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
    large: Any = expand_model(model, ALL)
    for ids in prompts(6):
        found, expected = logits(large, ids)[:, :VOCABULARY], logits(model, ids)
        worst, scale = float((found - expected).abs().max()), float(expected.std())
        assert worst < 1e-3 * scale, f"{worst:.1e} off, logits' scale {scale:.1e}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_equal_greedy_tokens(dtype: torch.dtype) -> None:
    model = narrow(dtype)
    large: Any = expand_model(model, ALL)
    for ids in prompts(6):
        given = {"attention_mask": torch.ones_like(ids)[None], "do_sample": False, "max_new_tokens": 24, "eos_token_id": 1}
        assert large.generate(ids[None], **given).tolist() == model.generate(ids[None], **given).tolist()


def test_expanding_twice_gives_the_same_weights_and_leaves_torchs_random_state() -> None:
    model = narrow(torch.float32)
    torch.manual_seed(3)
    first = expand_model(model, ALL).state_dict()
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))
    second = expand_model(model, ALL).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_new_weights_are_there_to_be_read() -> None:
    """A column of zeros costs no less to read, but a compressing memory could tell: what cannot reach the output is random."""
    model = narrow(torch.float32)
    large = expand_model(model, ALL)
    for name, weight in large.named_parameters():
        full = float((weight != 0).float().mean())
        if name.endswith(WRITES_HIDDEN[:2]):
            assert full < 0.2, f"{name}: {full}"
        elif "q_proj" in name and int(name.split(".")[2]) in (0, 2, 5):  # the model's layers: the new dimensions of its heads
            assert full == pytest.approx(1 - 4 * 24 / (20 * 32), abs=0.01)
        elif "embed_tokens" in name:  # what new tokens mean may be anything in the dimensions that are read
            assert weight[1:, :32].all() and not weight[:, 32:].any()  # the first is padding
        elif weight.ndim == 2:
            assert full > 0.99, f"{name}: {full}"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_as_far_from_exact_as_the_small_models_own(dtype: torch.dtype) -> None:
    exact, model = narrow(torch.float64), narrow(torch.float64).to(dtype)
    large = expand_model(model, ALL)
    own, its = 0.0, 0.0
    for ids in prompts(12):
        wanted = logits(exact, ids)
        own += float((logits(model, ids) - wanted).square().sum())
        its += float((logits(large, ids)[:, :VOCABULARY] - wanted).square().sum())
    assert its < 1.5**2 * own, f"{(its / own) ** 0.5:.2f} times as far"


REFUSED = {
    "with tied embeddings cannot": lambda: narrow(torch.float32, tie_word_embeddings=True),
    "with biases cannot": lambda: narrow(torch.float64, mlp_bias=True),
    "with biases can.ot": lambda: narrow(torch.float64, attention_bias=True),
    "not Qwen2ForCausalLM": lambda: tiny_model("qwen2", layers=1),
    "not MistralForCausalLM": lambda: tiny_model("mistral", layers=1),
}


@pytest.mark.parametrize(("said", "make"), REFUSED.items(), ids=REFUSED.keys())
def test_other_models_are_refused(said: str, make: Callable[[], Any]) -> None:
    with pytest.raises(InputError, match=said):
        expand_model(make(), WIDE)


ROPES = {
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    "longrope": {"rope_type": "longrope", "long_factor": [1.0] * 4, "short_factor": [1.0] * 4, "factor": 2.0},
}


@pytest.mark.parametrize("kind", ROPES)
def test_frequencies_that_another_head_size_would_change_are_refused(kind: str) -> None:
    model = narrow(torch.float32, rope_parameters={"rope_theta": 10000.0, "original_max_position_embeddings": 64, **ROPES[kind]})
    with pytest.raises(InputError, match=f"under rope_type={kind} "):
        expand_model(model, LONG_HEADS)


def test_llama_3s_frequencies_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", exact_norm)
    scaled = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    model = narrow(torch.float64, rope_parameters={"rope_theta": 10000.0, "original_max_position_embeddings": 64, **scaled})
    check_logits(expand_model(model, ALL), model)


@pytest.mark.parametrize("name", [*SAME, "num_hidden_layers", "vocab_size", "max_position_embeddings"])
def test_a_smaller_shape_is_refused(name: str) -> None:
    model = narrow(torch.float32)
    with pytest.raises(InputError, match=f"shape: {name}=.* is smaller than the model's"):
        expand_model(model, {name: getattr(model.config, name) - 1})


MISFITS = {
    "is not a multiple of the model's 8": {"head_dim": 12},
    "cannot share 3 key-value heads evenly": {"num_attention_heads": 8, "num_key_value_heads": 3},
    "do not hold the model's 2 with 3 each": {"num_attention_heads": 6, "num_key_value_heads": 3},
    "not a multiple of the number of attention heads": {"num_attention_heads": 10, "num_key_value_heads": 5},
    "layers is not a size of a shape": {"layers": 4},
}


@pytest.mark.parametrize(("said", "shape"), MISFITS.items(), ids=MISFITS.keys())
def test_a_shape_that_does_not_fit_is_refused(said: str, shape: dict[str, int]) -> None:
    model = narrow(torch.float32, hidden_size=48, num_attention_heads=6, num_key_value_heads=2)
    with pytest.raises(InputError, match=said):
        expand_model(model, shape)


@pytest.mark.skipif(not (SHIPPED / "model.safetensors").is_file(), reason="specbench/zoo/target holds no model.safetensors yet")
def test_the_shipped_target_at_100m_writes_its_own_tokens() -> None:
    shape: Any = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "target" / "mini.yaml").shapes["100m"])
    model: Any = AutoModelForCausalLM.from_pretrained(SHIPPED, dtype=torch.float32)
    wide: Any = expand_model(model.eval(), shape)
    assert 90e6 < sum(weight.numel() for weight in wide.parameters()) < 110e6
    (ids,) = prompts(1, longest=20)
    found, expected = logits(wide, ids), logits(model, ids)
    assert float((found - expected).abs().max()) < 1e-3 * float(expected.std())
    given = {"attention_mask": torch.ones_like(ids)[None], "do_sample": False, "max_new_tokens": 8}
    assert wide.generate(ids[None], **given).tolist() == model.generate(ids[None], **given).tolist()


def test_what_does_not_fit_is_refused_before_it_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "get_free_memory", lambda device: 10**9)
    shape: Any = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "target" / "mini.yaml").shapes["7b"])
    with pytest.raises(InputError, match=r"6.7 billion weights need 13.5 GB on cpu as float16; 1.0 GB are free"):
        models.load_model(str(SHIPPED), dtype="float16", device="cpu", shape=shape)
