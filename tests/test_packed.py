"""Linear layers in oneDNN's layout compute what plain ones do."""

from typing import Any

import pytest
import torch
from torch import nn

from specbench.decoding.language_model import LanguageModel
from specbench.decoding.loop import generate
from specbench.decoding.sampling import Sampling
from specbench.models import packed
from specbench.models.packed import PackedLinear, can_pack, pack
from tests.methods_under_test import drafter_of
from tests.tiny import prompts, tiny_model

CPU = torch.device("cpu")
packable = pytest.mark.skipif(not can_pack(CPU, torch.float32), reason="this torch has no oneDNN to pack float32 weights with")
every_architecture = pytest.mark.parametrize("architecture", ["llama", "qwen3", "starcoder2"])  # untied, tied, with biases


@pytest.fixture
def any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny layers are packed too."""
    monkeypatch.setattr(packed, "SMALLEST", 0)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.02)], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("width, height", [(32, 48), (256, 688), (100, 1024), (7, 3)])
@torch.inference_mode()
def test_a_packed_layer_equals_the_plain_one_for_1_to_64_rows(
    width: int, height: int, bias: bool, dtype: torch.dtype, tolerance: float
) -> None:
    if not can_pack(CPU, dtype):
        pytest.skip(f"this machine packs no {dtype}")
    torch.manual_seed(0)
    plain = nn.Linear(width, height, bias=bias).to(dtype)
    layer = PackedLinear(plain)
    assert (layer.in_features, layer.out_features) == (width, height)
    for rows in range(1, 65):
        for shape in [(1, rows, width), (rows, width), (rows, 2, width)]:
            x = torch.randn(shape).to(dtype)
            found, expected = layer(x), plain(x)
            worst = float((found - expected).abs().max())
            assert found.shape == expected.shape and worst < tolerance, f"{rows} rows: {worst:.1e} off, sums of {width} products"


@pytest.mark.parametrize("dtype", packed.DTYPES, ids=["float32", "bfloat16"])
@torch.inference_mode()
def test_every_number_of_rows_takes_the_packed_product(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule by rows that suits one processor halves the baseline's speed on another."""
    if not can_pack(CPU, dtype):
        pytest.skip(f"this machine packs no {dtype}")
    layer = PackedLinear(nn.Linear(64, 48).to(dtype))
    monkeypatch.setattr(nn.functional, "linear", lambda *_: pytest.fail("the plain product ran"))
    for rows in range(1, 10):
        layer(torch.randn(1, rows, 64).to(dtype))


@packable
@torch.inference_mode()
def test_rows_may_be_views_of_a_larger_tensor() -> None:
    """Transformers hands lm_head a slice of the hidden states, and batches are cut out of padded ones."""
    plain = nn.Linear(32, 48)
    x = torch.randn(3, 9, 64)[:, 2:7, ::2]
    assert torch.allclose(PackedLinear(plain)(x), plain(x), atol=1e-5)


@packable
@every_architecture
def test_every_linear_layer_is_packed_and_no_embedding(architecture: str, any_size: None) -> None:
    model: Any = tiny_model(architecture, layers=2, dtype=torch.float32)
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    embedding = model.get_input_embeddings().weight.clone()
    pack(model)
    assert [name for name, module in model.named_modules() if isinstance(module, PackedLinear)] == linear
    assert type(model.get_input_embeddings()) is nn.Embedding
    assert torch.equal(model.get_input_embeddings().weight, embedding), "a tied head's weights are still looked up in"


@packable
def test_small_layers_stay_plain() -> None:
    small, large = nn.Linear(300, 300), nn.Linear(700, 300)
    model = nn.Sequential(small, large)
    pack(model)
    assert model[0] is small and isinstance(model[1], PackedLinear), f"90,000 and 210,000 weights, limit {packed.SMALLEST:,}"


@packable
@every_architecture
@torch.inference_mode()
def test_a_packed_model_writes_the_same_tokens_by_generate_and_by_the_loop(architecture: str, any_size: None) -> None:
    plain: Any = tiny_model(architecture, layers=2, dtype=torch.float32)
    model = tiny_model(architecture, layers=2, dtype=torch.float32)
    pack(model)
    target = LanguageModel(model)
    drafter = drafter_of("pld", "llama")
    drafter.bind(target)
    settings = {"do_sample": False, "max_new_tokens": 16, "eos_token_id": 1}
    for prompt in prompts(4):
        given = {"attention_mask": torch.ones_like(prompt)[None], **settings}
        expected = plain.generate(prompt[None], **given)[0, len(prompt) :].tolist()
        with target.use_original_attention() as packed_model:
            original: Any = packed_model
            assert original.generate(prompt[None], **given)[0, len(prompt) :].tolist() == expected
        (out,) = generate(target, drafter, [prompt], Sampling(max_new_tokens=16, stop_token_ids=(1,)))
        assert out.output_ids == expected


@pytest.mark.parametrize("units", [False, True])
def test_only_float32_and_native_bfloat16_on_a_cpu_are_packed(monkeypatch: pytest.MonkeyPatch, units: bool) -> None:
    monkeypatch.setattr(packed, "has_bf16_units", lambda: units)
    assert can_pack(CPU, torch.bfloat16) == (units and can_pack(CPU, torch.float32))
    assert not can_pack(CPU, torch.float64) and not can_pack(CPU, torch.float16)
    assert not can_pack(torch.device("cuda"), torch.float32) and not can_pack(torch.device("mps"), torch.float32)
