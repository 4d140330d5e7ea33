"""A rehearsal counts the bytes of what is computed, without computing it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig

from specbench.machine.rehearsal import Rehearsal, is_rehearsing, pause_rehearsal
from specbench.models.outline import outline_model
from tests.tiny import EXTRA, SHAPE


def test_what_is_made_counts_until_it_goes() -> None:
    with Rehearsal() as rehearsal:
        first = torch.zeros(1000)
        view = first.view(10, 100)[2:5]  # counts no second time
        assert rehearsal.held == 4000
        second = first.to(torch.float64)
        assert rehearsal.held == 4000 + 8000
        del second
        assert (rehearsal.held, rehearsal.peak) == (4000, 12_000)
        assert rehearsal.restart() == 4000 == rehearsal.peak
        del first
        assert rehearsal.held == 4000, "a view of it is there"
        del view
        assert rehearsal.held == 0


def test_nothing_is_allocated_and_what_is_read_is_one() -> None:
    with Rehearsal() as rehearsal:
        large = torch.randn(1 << 30, 1 << 10)  # four tebibytes
        assert rehearsal.held == 4 << 40
        assert float(large.sum()) == 1.0 and bool(large.isfinite().all()) and int(large.long().max()) == 1
        assert large[0, :3].tolist() == [1.0, 1.0, 1.0]


def test_masks_choose_as_many_rows_as_they_are_said_to() -> None:
    with Rehearsal(rows=5, chosen={50: 20}):
        mask, states = torch.zeros(2, 10, dtype=torch.bool), torch.zeros(2, 10, 3)
        assert states[mask].shape == (5, 3) and mask.nonzero().shape == (5, 2)
        assert torch.zeros(7, 50)[:, torch.zeros(50, dtype=torch.bool)].shape == (7, 20)


def test_what_is_there_already_does_not_count() -> None:
    layer = nn.Linear(100, 50, bias=False)
    with Rehearsal() as rehearsal:
        assert layer(torch.ones(2, 100)).shape == (2, 50)
        assert rehearsal.peak == 4 * (2 * 100 + 2 * 50)


def test_gradients_count() -> None:
    with Rehearsal() as rehearsal:
        layer = nn.Linear(100, 50, bias=False)
        weights = rehearsal.restart()
        torch.autograd.backward(layer(torch.ones(10, 100)).sum())
        assert weights == 4 * 5000 and rehearsal.held == 2 * weights


def test_contents_are_there_in_a_pause() -> None:
    assert not is_rehearsing()
    with Rehearsal():
        with pause_rehearsal():
            assert torch.tensor([7]).tolist() == [7]
        assert is_rehearsing() and torch.tensor([7]).tolist() == [1]
    assert torch.tensor([7]).tolist() == [7] and not is_rehearsing()


def test_weights_that_are_drawn_until_they_fit_are_not_drawn(tmp_path: Path) -> None:
    text = {"model_type": "gemma3_text", **SHAPE, **EXTRA["gemma3_text"], "num_hidden_layers": 2}
    seen = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28}
    AutoConfig.for_model("gemma3", text_config=text, vision_config=seen | {"patch_size": 14}).save_pretrained(tmp_path)
    with Rehearsal() as rehearsal:
        outline = outline_model(path=str(tmp_path), dtype="float32", device="cpu")
        assert rehearsal.held >= sum(weight.nbytes for weight in outline.model.parameters()) > 0
        assert outline.embedding.get_parameter("weight") is outline.head.get_parameter("weight"), "tied, so counted once"
