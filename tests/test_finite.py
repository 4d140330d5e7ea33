"""Weights that are not numbers are named."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from specbench.errors import InputError
from specbench.models.finite import check_weights

BAD = (float("nan"), float("inf"), float("-inf"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2], ids=str)
@pytest.mark.parametrize("bad", BAD)
def test_a_bad_entry_is_counted_and_its_tensor_named(dtype: torch.dtype, bad: float) -> None:
    weight = torch.ones(3, 5)
    weight[1, 2] = weight[2, 0] = bad
    with pytest.raises(InputError, match=re.escape("the model holds NaN or infinite weights: b (2 of 15)")):
        check_weights({"a": torch.ones(4).to(dtype), "b": weight.to(dtype)}, "the model")


def test_what_is_fine() -> None:
    tensors = {"ids": torch.arange(3), "mask": torch.ones(3, dtype=torch.bool), "none": torch.zeros(0)}
    large = {"large": torch.tensor([torch.finfo(torch.float16).max, -1e-8], dtype=torch.float16)}
    check_weights({**tensors, **large, "meta": torch.zeros(3, device="meta")}, "the model")


def test_of_a_module_shared_weights_are_named_once_and_buffers_too() -> None:
    module = nn.ModuleDict({"one": nn.Linear(2, 2, bias=False), "two": nn.Linear(2, 2, bias=False), "norm": nn.BatchNorm1d(2)})
    module["two"].weight = module["one"].weight
    module.get_parameter("one.weight").data[0, 0] = float("nan")
    module.get_buffer("norm.running_mean")[1] = float("inf")
    with pytest.raises(InputError, match=re.escape("weights: one.weight (1 of 4), norm.running_mean (1 of 2)")):
        check_weights(module, "the model")


@given(st.integers(1, 5000), st.data())
def test_any_place_of_any_size(size: int, data: st.DataObject) -> None:
    weight = torch.linspace(-1, 1, size)
    check_weights({"w": weight}, "it")
    weight[data.draw(st.integers(0, size - 1))] = data.draw(st.sampled_from(BAD))
    with pytest.raises(InputError, match=rf"w \(1 of {size}\)"):
        check_weights({"w": weight}, "it")
