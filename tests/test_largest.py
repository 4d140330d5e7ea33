"""The first of the largest logits, searched block by block or not, is argmax's."""

import pytest
import torch

from specbench.decoding import largest
from specbench.decoding.largest import find_largest


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [128, 130, 512, 1000, 32_000])
@pytest.mark.parametrize("shape", [(), (1,), (11,), (2, 3)], ids=str)
def test_the_first_of_equals_is_found(
    shape: tuple[int, ...], size: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(largest, "LARGE", 100)
    draw = torch.Generator().manual_seed(size)
    logits = torch.randint(-9, 9, (*shape, size), generator=draw).to(dtype)  # many equals
    found, token = find_largest(logits)
    assert torch.equal(token, logits.argmax(dim=-1)) and torch.equal(found, logits.amax(dim=-1))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_a_number_is_not_lost(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(largest, "LARGE", 100)
    logits = torch.zeros(3, 256)
    logits[1, 200] = value
    logits[2] = value
    found, token = find_largest(logits)
    finite = found.isfinite().tolist()
    assert finite == [True, value == -float("inf"), False] and int(token[1]) == (0 if value == -float("inf") else 200)
