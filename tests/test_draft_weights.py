"""Tensors of trained drafters that fit by name and shape, but cannot be weights."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from methods.eagle3 import Eagle3Network
from specbench.drafters.checkpoints import OURS, read_tensors
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
    read = read_tensors(folder / "copy", [OURS])
    tensors = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in read.items()}
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
    with pytest.raises(InputError, match=f"of the wrong type: {said}, expected torch.float32"):
        load_network(Eagle3Network, str(tmp_path / "copy"), mini())


@pytest.mark.parametrize(
    ("tensor", "value", "dtype"),
    [("fc.weight", 1e300, "float32"), ("fc.weight", 65520.0, "float16"), ("midlayer.mlp.up_proj.weight", 65520.0, "float16")],
)
def test_weights_that_become_infinite_as_they_run(tensor: str, value: float, dtype: str, tmp_path: Path) -> None:
    def enlarge(tensors: dict[str, torch.Tensor]) -> None:
        tensors[tensor] = tensors[tensor].double()
        tensors[tensor][0, 0] = value

    spoil(tmp_path, "eagle3", enlarge)
    with pytest.raises(InputError, match=re.escape(f"as {dtype} holds NaN or infinite weights: {tensor} (1 of ")):
        load_network(Eagle3Network, str(tmp_path / "copy"), mini(), dtype)


def reduce_vocabulary(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> str:
    """Write an EAGLE-3 of the first 100 tokens with changed maps and return its folder."""

    def cut(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["lm_head.weight"][:100].clone()
        tensors["d2t"], tensors["t2d"] = torch.zeros(100, dtype=torch.long), torch.arange(1024) < 100
        change(tensors)

    spoil(folder, "eagle3", cut)
    config = json.loads((folder / "copy" / "config.json").read_text()) | {"draft_vocab_size": 100}
    (folder / "copy" / "config.json").write_text(json.dumps(config))
    return str(folder / "copy")


@pytest.mark.parametrize("offset", [2000, -3, 1])
def test_a_vocabulary_map_to_no_token_or_one_token_twice(offset: int, tmp_path: Path) -> None:
    folder = reduce_vocabulary(tmp_path, lambda tensors: tensors["d2t"].__setitem__(2, offset))
    with pytest.raises(InputError, match="d2t maps to ids beyond the target's 1024, or several tokens to one id"):
        load_network(Eagle3Network, folder, mini())


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors["t2d"].zero_(),
        lambda tensors: tensors["t2d"].__setitem__(500, True),
        lambda tensors: tensors["t2d"].copy_(tensors["t2d"].roll(1)),
        lambda tensors: tensors["d2t"].__setitem__(99, 5),
    ],
)
def test_vocabulary_maps_that_contradict_each_other(change: Callable[[dict[str, torch.Tensor]], Any], tmp_path: Path) -> None:
    folder = reduce_vocabulary(tmp_path, change)
    with pytest.raises(InputError, match="t2d contradicts d2t"):
        load_network(Eagle3Network, folder, mini())


def test_vocabulary_maps_of_one_set_in_any_order(tmp_path: Path) -> None:
    def turn(tensors: dict[str, torch.Tensor]) -> None:
        tensors["d2t"], tensors["t2d"] = 1023 - 2 * torch.arange(100), torch.arange(1024) >= 924

    assert load_network(Eagle3Network, reduce_vocabulary(tmp_path, turn), mini()).draft_vocabulary == 100
