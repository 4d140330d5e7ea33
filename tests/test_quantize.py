"""target.quantize: linear layers as whole numbers, at load."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from specbench.analysis.loaded_run import read_run
from specbench.analysis.summary import summarise
from specbench.errors import InputError
from specbench.machine.rehearsal import Rehearsal
from specbench.models import quantize
from specbench.models.load import load_model
from specbench.models.outline import outline_model
from specbench.models.packed import is_plain
from specbench.models.quantize import check_quantize
from specbench.report.alarms import find_alarms
from tests.conftest import Cli, Tiny


def test_linear_layers_hold_whole_numbers_close_to_their_weights(tiny: Tiny) -> None:
    pytest.importorskip("torchao")
    plain, quantised = (
        load_model(str(tiny.target), dtype="bfloat16", device="cpu", packed=False, quantize=chosen) for chosen in (None, "int8")
    )
    assert quantised.quantised == "int8" and plain.quantised is None
    others = dict(quantised.model.named_modules())
    for name, layer in plain.model.named_modules():
        if isinstance(layer, nn.Linear):
            stored = others[name].weight
            assert not is_plain(others[name]) and is_plain(layer)
            step = layer.weight.abs().amax(dim=1, keepdim=True).float() / 127
            assert ((stored.dequantize().float() - layer.weight.float()).abs() <= 1.02 * step).all(), name
    assert type(quantised.embedding.weight) is nn.Parameter


@pytest.mark.full
def test_a_run_says_that_its_layers_are_quantised(tiny: Tiny, cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    more = ("+target.quantize=int8", "method=[pld]", "task=[qa]", "limit=1", "repeats=1", "check_baseline=false", "out=run")
    assert cli("run", *tiny.overrides(*more)).status == 0
    run = read_run(tmp_path / "run")
    said = [alarm.message for alarm in find_alarms(run, summarise(run))]
    assert any(message.startswith("the target's layers are quantised (int8)") for message in said)


def test_what_cannot_be_done_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="quantize=int4: expected int8 or null"):
        check_quantize("int4")
    monkeypatch.setattr(quantize, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"torchao is not installed: pip install -e '.\[quantize\]'"):
        check_quantize("int8")
    check_quantize(None)


def test_nothing_is_claimed_of_its_memory(tiny: Tiny) -> None:
    with Rehearsal(), pytest.raises(InputError, match="its memory use is not known"):
        outline_model(path=str(tiny.target), dtype="bfloat16", device="cpu", quantize="int8")
    assert torch.tensor([3]).tolist() == [3]
