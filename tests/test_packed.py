"""Linear layers in oneDNN's layout compute what plain ones do."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from specbench.decoding.language_model import LanguageModel
from specbench.decoding.loop import generate
from specbench.decoding.sampling import Sampling
from specbench.models import packed, products
from specbench.models.packed import PackedLinear, can_pack
from specbench.models.products import pack
from tests.methods_under_test import drafter_of
from tests.tiny import prompts, tiny_model

CPU = torch.device("cpu")
MEASURE = products.measure_first_row  # which tests replace
packable = pytest.mark.skipif(not can_pack(CPU, torch.float32), reason="this torch has no oneDNN to pack float32 weights with")
every_architecture = pytest.mark.parametrize("architecture", ["llama", "qwen3", "starcoder2"])  # untied, tied, with biases


@pytest.fixture
def any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny layers are packed too."""
    monkeypatch.setattr(products, "SMALLEST", 0)
    monkeypatch.setattr(products, "measure_first_row", lambda layers: 1)
    monkeypatch.setattr(products.PRODUCTS, "first_rows", {})


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


@packable
@torch.inference_mode()
def test_few_rows_take_the_plain_product_where_that_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = PackedLinear(nn.Linear(64, 48), first_row=3)
    plain: list[int] = []

    def multiply(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        plain.append(x.shape[-2])
        return nn.functional.linear(x, *weights)

    monkeypatch.setattr(packed, "linear", multiply)
    for rows in range(1, 6):
        layer(torch.randn(1, rows, 64))
    assert plain == [1, 2]


@packable
@torch.inference_mode()
def test_siblings_are_one_product_and_still_themselves(any_size: None) -> None:
    torch.manual_seed(0)
    plain = nn.ModuleDict({name: nn.Linear(32, size) for name, size in (("q_proj", 48), ("k_proj", 16), ("v_proj", 24))})
    joined: Any = copy.deepcopy(plain)
    products.pack(joined)
    assert len({id(layer.product) for layer in joined.values()}) == 1
    first, second = torch.randn(1, 3, 32), torch.randn(1, 5, 32)
    calls = [("q_proj", first), ("k_proj", first), ("v_proj", first), ("v_proj", second), ("q_proj", second), ("k_proj", first)]
    for name, x in calls:  # in order, then out of order and with mixed inputs
        assert torch.allclose(joined[name](x), plain[name](x), atol=1e-5), name


@pytest.mark.parametrize(
    "seconds, expected",
    [
        ({}, 1),  # equal times: packed
        ({1: 0.5, 2: 0.5, 4: 0.5, 8: 0.5, 32: 0.5}, None),
        ({1: 0.5, 2: 0.95}, 2),  # within the margin it is packed
        ({4: 0.5}, 8),  # a faster plain product in between
    ],
)
def test_packed_is_taken_from_the_row_on_from_which_it_is_never_slower(
    seconds: dict[int, float], expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_time_both", lambda x, *layers: ([seconds.get(x.shape[1], 1.0)], [1.0]))
    monkeypatch.setattr(products, "Product", lambda weight, bias: None)
    assert MEASURE([nn.Linear(8, 8)]) == expected


@pytest.mark.parametrize("product_s, sums", [(1.0, True), (0.8, True), (0.5, False)])
def test_compiled_forwards_take_sums_unless_the_product_is_much_faster(
    product_s: float, sums: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "LARGE", 64)
    monkeypatch.setattr(products, "CACHED", 1)
    monkeypatch.setattr(products, "_time_both", lambda x, *ways: ([product_s], [1.0]))
    chosen = products.Products()
    layers = [PackedLinear(nn.Linear(8, 8), None) for _ in range(3)]
    assert chosen.choose_sums(layers) == sums
    assert chosen.sums == {"float32": sums}
    monkeypatch.setattr(products, "_time_both", lambda *_: pytest.fail("measured again"))
    assert chosen.choose_sums(layers) == sums


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.02)], ids=str)
@torch.inference_mode()
def test_sums_equal_products(dtype: torch.dtype, tolerance: float, bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(100, 70, bias=bias).to(dtype)
    x = torch.randn(1, 1, 100).to(dtype)
    found = packed.reduce(x, layer.weight, layer.bias)
    assert found.shape == (1, 1, 70) and found.dtype == dtype and torch.allclose(found, layer(x), atol=tolerance)


@packable
def test_what_an_earlier_process_measured_is_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = products.Products()
    chosen.recall({"float32 8 to 8 with bias": None}, {"float32": False})
    monkeypatch.setattr(products, "measure_first_row", lambda layers: pytest.fail("measured again"))
    monkeypatch.setattr(products, "is_sum_as_fast", lambda layers: pytest.fail("measured again"))
    assert chosen.choose([nn.Linear(8, 8)]) is None
    assert not chosen.choose_sums([PackedLinear(nn.Linear(8, 8), None)])


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
def test_small_layers_stay_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "measure_first_row", lambda layers: 1)
    monkeypatch.setattr(products.PRODUCTS, "first_rows", {})
    model: Any = nn.Sequential(nn.Linear(150, 200), nn.Linear(200, 200))
    assert pack(model) == {"float32 200 to 200 with bias": 1}
    packed = [layer.product is not None for layer in model]
    assert packed == [False, True], f"30,000 and 40,000 weights, limit {products.SMALLEST:,}"


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


@pytest.mark.parametrize(
    "plain, faster", [([0.5, 0.5, 0.5], True), ([0.5, 2, 2], False), ([0.95, 0.95, 0.95], False), ([0.5, 0.5, 9], True)]
)
def test_a_disturbed_round_decides_nothing(plain: list[float], faster: bool) -> None:
    assert products.is_faster(plain, [1.0, 1.0, 1.0]) == faster


@pytest.mark.parametrize("size, first, expected", [(8, 1, 1), (8, 4, None), (8, None, None), (600, 4, 4)])
def test_small_layers_take_one_product_for_every_row(
    size: int, first: int | None, expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "measure_first_row", lambda layers: first)
    assert products.Products().choose([nn.Linear(size, size)]) == expected


def test_a_gradient_flows_through_a_packed_layer() -> None:
    """EAGLE's loss goes through the target's head."""
    plain = nn.Linear(256, 300, bias=False).requires_grad_(False)
    x = torch.randn(3, 256, requires_grad=True)
    torch.autograd.backward(PackedLinear(plain)(x).square().sum())
    other = x.detach().clone().requires_grad_()
    torch.autograd.backward(plain(other).square().sum())
    assert x.grad is not None and other.grad is not None and torch.equal(x.grad, other.grad)
