"""What the self-test at load takes for rounding: its floors, its ceiling, the float32 copy of a model in 16 bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from specbench.decoding.language_model import LanguageModel
from specbench.errors import InputError
from specbench.models import self_test
from specbench.models.products import pack
from specbench.models.self_test import check_float32_copy, check_forward
from tests.test_self_test import RUN, Break, build, drop_the_move, lose_the_tree
from tests.tiny import tiny_model


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fault", [lose_the_tree, drop_the_move])
def test_a_fault_in_16_bits_alone_is_found(fault: Break, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its float32 copy has passed."""
    target = LanguageModel(build("llama", dtype))
    copied = check_float32_copy(target)
    assert check_forward(target, copied)["tokens"] > 0
    fault(monkeypatch)
    with pytest.raises(InputError, match="its logits differ from transformers'"):
        check_forward(target, copied)


@pytest.mark.parametrize("architecture", ["llama", "gpt_oss", "granitemoe"])
def test_in_16_bits_rounding_is_how_far_transformers_is_from_float32(architecture: str) -> None:
    target = LanguageModel(build(architecture, torch.bfloat16, **{**RUN[architecture], "initializer_range": 0.05}))
    copied = check_float32_copy(target)
    assert copied is not None
    figures = check_forward(target, copied)
    assert figures["rounding"] == copied.rounding and figures["bound"] == max(3 * copied.rounding, 0.02) < 0.1


def test_a_packed_product_in_16_bits_that_is_wrong_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers' own forward takes it, too."""
    monkeypatch.setattr("specbench.models.products.SMALLEST", 0)
    monkeypatch.setattr("specbench.models.products.PRODUCTS.choose", lambda layers: 1)
    monkeypatch.setattr("specbench.models.packed.Product.multiply", lambda self, x: 1.2 * linear(x, self.weight, self.bias))
    monkeypatch.setattr("specbench.models.products.SIBLINGS", ())
    target = LanguageModel(build("llama", torch.bfloat16))
    copied = check_float32_copy(target)
    pack(target.model)
    assert check_forward(target)["tokens"] > 0, "both are wrong alike"
    with pytest.raises(InputError, match="in the prompt its logits differ from transformers'"):
        check_forward(target, copied)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cache_of_transformers_that_changes_its_logits_is_no_measure(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = self_test._read_cached

    def read_turned(model: LanguageModel, ids: Tensor, size: int) -> Tensor:
        return read(model, ids, size).roll(1, dims=0)

    monkeypatch.setattr(self_test, "_read_cached", read_turned)
    with pytest.raises(InputError, match="transformers' own cache changes its logits by 1"):
        check_forward(LanguageModel(build("llama", dtype)))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 50.0])
@pytest.mark.parametrize(("architecture", "left_out"), [("llama", False), ("mixtral", True)])
def test_a_wrong_row_is_left_out_only_with_experts(
    architecture: str, left_out: bool, bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = self_test._run_ours

    def run_spoilt(model: LanguageModel, script: Any, committed_only: bool) -> dict[str, Tensor]:
        found = run(model, script, committed_only)
        found["a chain"][2, 5] = bad
        return found

    monkeypatch.setattr(self_test, "_run_ours", run_spoilt)
    target = LanguageModel(build(architecture, **RUN[architecture]))
    if left_out and bad == 50.0:
        assert check_forward(target)["tokens"] > 0
    else:
        with pytest.raises(InputError, match="in a chain its logits differ from transformers' by"):
            check_forward(target)


def test_only_windows_are_windows() -> None:
    """Qwen's max_window_layers counts layers."""
    assert check_forward(LanguageModel(build("qwen2", max_window_layers=28)))["beyond"] == {}


def test_a_model_in_16_bits_is_tested_in_float32_where_memory_holds_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    model = LanguageModel(tiny_model(dtype=torch.bfloat16))
    copied = check_float32_copy(model)
    assert copied is not None and copied.figures["bound"] < 1e-3 and model.model.dtype == torch.bfloat16
    assert check_float32_copy(LanguageModel(tiny_model(dtype=torch.float32))) is None
    with monkeypatch.context() as little:
        little.setattr("specbench.models.self_test.get_free_memory", lambda device: 1000)
        assert check_float32_copy(model) is None
    vars(model.model)["is_quantized"] = True  # as transformers marks one: GPTQ keeps whole numbers in buffers
    assert check_float32_copy(model) is None
