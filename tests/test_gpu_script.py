"""What `make gpu` keeps, that one piece that cannot be answered does not stop the others, and what pieces measure."""

from pathlib import Path

import pytest
import torch
from rich.table import Table

from benchmarks import attention, gpu, shapes
from specbench.errors import InputError


def asked(folder: Path, limit: int = 1) -> gpu.Asked:
    return gpu.Asked(torch.device("cpu"), limit, "100m", ["100m"], [500], folder / "runs", folder / "reports")


def shown() -> Table:
    table = Table("what", "measured")
    table.add_row("bandwidth", "1234 GB/s")
    return table


def test_an_answer_is_kept_and_not_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def too_large() -> Table:
        calls.append("large")
        raise InputError("70.0 billion weights need 140.0 GB")

    def fine() -> Table:
        calls.append("fine")
        return shown()

    monkeypatch.setattr(gpu, "pieces", lambda _: {"large": too_large, "fine": fine})
    for _ in range(2):
        (why,) = gpu.answered(asked(tmp_path)).values()
        assert "140.0 GB" in why
    assert calls == ["large", "fine", "large"]
    assert "1234 GB/s" in asked(tmp_path).answer("fine").read_text(encoding="utf-8")


def test_answers_to_other_questions_are_not_taken_for_these(tmp_path: Path) -> None:
    for _ in range(2):
        gpu.check_same(asked(tmp_path))
    with pytest.raises(InputError, match="holds answers to .*--limit 1 .*, not to .*--limit 2 "):
        gpu.check_same(asked(tmp_path, limit=2))


def test_a_shape_and_the_mini_target_side_by_side() -> None:
    (baseline, pld) = shapes.compared("100m", ["pld"], tokens=12).to_dict("records")
    assert (baseline["method"], baseline["mean_accepted_tokens"]) == ("autoregressive", 1)
    assert pld["texts"] == pld["texts_equal"] == pld["steps_equal"] == 6
    assert pld["steps"] == pld["steps_mini"] < baseline["steps"]


def test_ways_of_attention_agree() -> None:
    torch.manual_seed(0)
    keys, values = torch.randn(2, 1, 2, 40, 16)
    query, mask = torch.randn(1, 6, 3, 16), torch.zeros(3, 40).index_fill_(1, torch.tensor([38, 39]), float("-inf"))
    engine, *others = (way(query, keys, values, mask) for name, way in attention.ways().items() if name != "FlexAttention")
    for other in others:
        torch.testing.assert_close(other, engine)
