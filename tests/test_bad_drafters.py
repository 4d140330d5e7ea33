"""Broken checkpoints of trained drafters: refused in one line, before anything is timed or written."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from specbench import ROOT
from specbench.drafters.checkpoints import read_tensors
from tests.conftest import Refuse, tensors
from tests.test_bad_files import changed, empty, replace_by_fifo

NOT_A_BIN = "cannot be read: it was not written by torch.save"
BROKEN_DRAFTERS: Mapping[str, tuple[str, Callable[[Path], object], str]] = {
    "config-list": ("eagle3", lambda folder: (folder / "config.json").write_text("[]"), "config.json: not a JSON object"),
    "config-twice": (
        "medusa",
        lambda folder: (folder / "config.json").write_text('{"medusa_num_heads": 4, "medusa_num_heads": 5}'),
        "config.json: the key 'medusa_num_heads' is given twice",
    ),
    "config-torn": ("medusa", lambda folder: (folder / "config.json").write_text("{"), "config.json: not a JSON object"),
    "config-nested": (
        "medusa",
        lambda folder: (folder / "config.json").write_text("[" * 100_000),
        "nested too deeply",
    ),
    "config-missing": ("eagle", lambda folder: (folder / "config.json").unlink(), "config.json: no such file"),
    "config-fifo": ("eagle", lambda folder: replace_by_fifo(folder / "config.json"), "config.json: expected a file"),
    "heads-zero": (
        "hydra_heads",
        lambda folder: changed(folder, "config.json", hydra_num_heads=0),
        "hydra_num_heads=0: expected",
    ),
    "heads-name": (
        "medusa",
        lambda folder: changed(folder, "config.json", medusa_num_heads="x"),
        'medusa_num_heads="x": expected',
    ),
    "heads-negative": ("eagle", lambda folder: changed(folder, "config.json", num_attention_heads=-1), "heads=-1: expected"),
    "heads-bool": ("eagle3", lambda folder: changed(folder, "config.json", num_attention_heads=True), "heads=true: expected"),
    "activation": ("eagle3", lambda folder: changed(folder, "config.json", hidden_act="evil"), 'hidden_act="evil": expected '),
    "taps": (
        "eagle3",
        lambda folder: changed(folder, "config.json", eagle_aux_hidden_state_layer_ids=[2, 4, 50]),
        "eagle_aux_hidden_state_layer_ids=[2, 4, 50]: expected three different whole numbers from 0 to 8",
    ),
    "bin-empty": ("medusa", lambda folder: weights_as(folder, "medusa_lm_head.pt", b""), "cannot be read"),
    "bin-garbage": ("medusa", lambda folder: weights_as(folder, "medusa_lm_head.pt", b"garbage"), NOT_A_BIN),
    "bin-noise": ("eagle", lambda folder: weights_as(folder, "pytorch_model.bin", b"\x80\x02\xff" * 20), "cannot be read"),
    "bin-list": ("eagle", lambda folder: weights_as(folder, "pytorch_model.bin", saved([1, 2])), "expected a state dict"),
    "bin-numbers": ("eagle", lambda folder: weights_as(folder, "pytorch_model.bin", saved({"a": 1})), "expected a state dict"),
    "bin-nested": (
        "eagle",
        lambda folder: weights_as(folder, "pytorch_model.bin", saved({"state_dict": {"a": torch.zeros(1)}})),
        "expected a state dict",
    ),
    "bin-sparse": (
        "medusa",
        lambda folder: weights_as(folder, "medusa_lm_head.pt", saved({"0.0.linear.weight": torch.eye(256).to_sparse()})),
        "of the wrong type: 0.0.linear.weight",
    ),
    "safetensors-empty": ("eagle3", lambda folder: weights_as(folder, "model.safetensors", b""), "cannot be read"),
    "safetensors-garbage": ("eagle3", lambda folder: weights_as(folder, "model.safetensors", b"garbage" * 9), "cannot be read"),
    "index-list": (
        "eagle3",
        lambda folder: weights_as(folder, "model.safetensors.index.json", b"[1]"),
        "model.safetensors.index.json: not a JSON object",
    ),
    "index-empty": ("eagle3", lambda folder: weights_as(folder, "model.safetensors.index.json", b"{}"), 'expected {"weight_map"'),
    "index-outside": (
        "eagle3",
        lambda folder: weights_as(folder, "model.safetensors.index.json", b'{"weight_map": {"a": "../a.safetensors"}}'),
        'expected {"weight_map"',
    ),
    "index-absent": (
        "eagle3",
        lambda folder: weights_as(folder, "model.safetensors.index.json", b'{"weight_map": {"a": "a.safetensors"}}'),
        "names a.safetensors, which does not exist",
    ),
    "no-weights": ("eagle3", empty, "no checkpoint at "),
    "no-number": (
        "eagle3",
        lambda folder: tensors(folder, lambda weights: weights["fc.weight_scale"].__setitem__((0, 0), float("nan"))),
        "holds NaN or infinite weights: fc.weight (768 of 196608)",
    ),
}


def weights_as(folder: Path, file: str, content: bytes) -> None:
    (folder / "model.safetensors").unlink()
    (folder / file).write_bytes(content)


def saved(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("name", BROKEN_DRAFTERS)
def test_drafters(refuse: Refuse, tmp_path: Path, name: str) -> None:
    """Refused before anything is timed or written."""
    label, spoil, expected = BROKEN_DRAFTERS[name]
    folder = Path(shutil.copytree(ROOT / "specbench" / "zoo" / label, tmp_path.parent / f"{tmp_path.name}-{label}"))
    spoil(folder)
    limits = ["limit=1", "task=qa", "check_baseline=false", "target.dtype=float32", "threads=1", "out=results/x"]
    said = refuse("run", *limits, f"method=[{label}]", f"method.{label}.checkpoint={folder}")
    assert expected in said and len(said) < 700, said


def test_a_drafter_in_shards_is_read(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(ROOT / "specbench" / "zoo" / "eagle3", tmp_path / "sharded"))
    whole = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = {name: f"part-{number % 3}.safetensors" for number, name in enumerate(whole)}
    for file in set(files.values()):
        save_file({name: whole[name] for name in files if files[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    read = read_tensors(folder, ())
    assert read.keys() == whole.keys() and all(torch.equal(read[name], whole[name]) for name in whole)
