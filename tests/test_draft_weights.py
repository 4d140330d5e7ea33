"""Tensors of trained drafters that fit by name and shape, but cannot be weights."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from methods.eagle3 import Eagle3Network
from specbench.drafters.network_drafter import load_network
from specbench.errors import InputError
from tests.test_draft_configs import NAMES, changed, mini


@pytest.mark.parametrize(
    ("name", "tensor", "bad"),
    [
        ("eagle3", "fc.weight", float("nan")),
        ("eagle", "layers.0.mlp.down_proj.weight", float("inf")),
        ("medusa", "2.1.weight", float("-inf")),
        ("hydra_heads", "hydra_lm_head.1.1.bias", float("nan")),
    ],
)
def test_weights_that_are_no_numbers_are_refused(name: str, tensor: str, bad: float, tmp_path: Path) -> None:
    spoil(tmp_path, name, lambda tensors: tensors[tensor].view(-1).__setitem__(0, bad))
    with pytest.raises(InputError, match=re.escape(f"holds NaN or infinite weights: {tensor} (1 of ")):
        load_network(NAMES[name], str(tmp_path / "copy"), mini())


def spoil(folder: Path, name: str, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    changed(name, folder)
    tensors = load_file(folder / "copy" / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "copy" / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.update({"fc.weight": torch.zeros(256, 768, dtype=torch.long)}), "fc.weight is torch.int64"),
        (
            lambda tensors: tensors.update({"fc.weight": torch.zeros(256, 768, dtype=torch.complex64)}),
            "fc.weight is torch.complex64",
        ),
    ],
)
def test_tensors_of_another_kind(change: Callable[[dict[str, torch.Tensor]], Any], said: str, tmp_path: Path) -> None:
    spoil(tmp_path, "eagle3", change)
    with pytest.raises(InputError, match=f"of another kind: {said}, expected torch.float32"):
        load_network(Eagle3Network, str(tmp_path / "copy"), mini())


@pytest.mark.parametrize("offset", [2000, -3, 1])
def test_a_vocabulary_map_to_no_token_or_one_token_twice(offset: int, tmp_path: Path) -> None:
    def cut(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["lm_head.weight"][:100].clone()
        tensors["d2t"], tensors["t2d"] = torch.zeros(100, dtype=torch.long), torch.arange(1024) < 100
        tensors["d2t"][2] = offset

    spoil(tmp_path, "eagle3", cut)
    config = json.loads((tmp_path / "copy" / "config.json").read_text()) | {"draft_vocab_size": 100}
    (tmp_path / "copy" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="d2t maps to other tokens than the target's 1024, or several to one"):
        load_network(Eagle3Network, str(tmp_path / "copy"), mini())
