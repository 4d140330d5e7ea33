"""The roofline card: every cell exists and its bytes are right. No test here checks a speed."""

import json
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from torch import nn

from specbench.decoding.kv_store import KVStore
from specbench.decoding.tree import DraftTree
from specbench.diagnose import roofline
from specbench.diagnose.roofline import build_cost_table, count_weight_bytes, measure_forwards, time_rows, write_files
from specbench.errors import InputError
from specbench.records.run_directory import RunDirectory
from specbench.setup.compose import compose_run
from tests.tiny import SHAPE, VOCABULARY, tiny_language_model, tiny_model


@pytest.fixture(autouse=True)
def quick_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "measure_bandwidth", lambda device: 1e9)


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(roofline, "measure_bandwidth", lambda device: 1e9)
        return measure_forwards(tiny_language_model(), tokens=[2, 8], contexts=[16, 4096], repeats=2, seconds_budget=20)


def test_every_cell_once_contexts_capped(frame: pd.DataFrame) -> None:
    cells = list(zip(frame["context"], frame["tokens"], strict=True))
    assert cells == [(context, n) for context in (16, 256 - 8) for n in (1, 2, 8)]


def test_forwards_of_fixed_shape_are_timed_too() -> None:
    model = tiny_language_model()
    model.runner.kind = "static"
    assert len(measure_forwards(model, tokens=[2], contexts=[16], repeats=1)) == 2
    assert set(time_rows(model, [1, 4], 16, repeats=1)) == {1, 4}


def test_numbers_are_positive_and_ordered(frame: pd.DataFrame) -> None:
    assert (frame.drop(columns=["tokens", "context"]) > 0).all().all()
    assert (frame["milliseconds_low"] <= frame["milliseconds"]).all()
    assert (frame["milliseconds"] <= frame["milliseconds_high"]).all()
    assert (frame.loc[frame["tokens"] == 1, "relative"] == 1).all()


def test_bytes_and_ceiling(frame: pd.DataFrame) -> None:
    row = frame.iloc[-1]  # context 248, 8 tokens
    assert row["kv_bytes"] == 3 * 2 * 2 * 8 * 256 * 8, "layers x (k, v) x heads x width x entries x float64"
    assert row["ceiling_ms"] == pytest.approx((row["weight_bytes"] + row["kv_bytes"]) / 1e9 * 1e3)


def attention_and_mlp(layers: int) -> int:
    """Weights of tiny Llama's layers and norms: width 32, MLP 48, 4 heads and 2 key-value heads of 8."""
    hidden, mlp = 32, 48
    per_layer = hidden * 32 * 2 + hidden * 16 * 2 + 3 * hidden * mlp + 2 * hidden
    return layers * per_layer + hidden


def test_weight_bytes_of_a_llama() -> None:
    head = VOCABULARY * SHAPE["hidden_size"]
    assert count_weight_bytes(tiny_model("llama", layers=2)) == 8 * (attention_and_mlp(2) + head), (
        "the table is only looked up in"
    )


def test_tied_weights_count_once() -> None:
    model = tiny_model("qwen3", layers=2)
    norms = 2 * 2 * 8  # of queries and keys
    assert count_weight_bytes(model) == 8 * (attention_and_mlp(2) + norms + VOCABULARY * SHAPE["hidden_size"])


def test_lookups_do_not_count() -> None:
    assert count_weight_bytes(nn.Sequential(nn.Embedding(10, 10), nn.Linear(2, 3, bias=False))) == 2 * 3 * 4


def test_budget_ends_rounds_after_the_first() -> None:
    model = tiny_language_model()
    cells = roofline._list_cells(model, [1], [4])
    store = model.create_store(8)
    with torch.inference_mode():
        assert len(list(roofline._time_rounds(model, store, cells, repeats=50, seconds_budget=0))) == 1


def test_a_context_is_timed_in_its_own_bucket() -> None:
    model, store = tiny_language_model(), KVStore(1, 200)
    tree = DraftTree.chain(torch.tensor([3, 4]))
    with torch.inference_mode():
        roofline._time_forward(model, store, tree, 190)
        assert store.bucket == 192
        roofline._time_forward(model, store, tree, 10)
    assert store.bucket == 64, "a smaller context after a larger one"


def test_sizes_that_do_not_fit() -> None:
    for tokens, contexts in (([300], [16]), ([0], [16]), ([4], []), ([4], [0])):
        with pytest.raises(InputError, match="within the context of 256"):
            measure_forwards(tiny_language_model(), tokens, contexts)


def test_bandwidths_are_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert roofline.measure_copy_bandwidth(torch.device("cpu"), size=1 << 16, repeats=1) > 0
    assert roofline.measure_read_bandwidth(size=1 << 16, repeats=1) > 0


def test_card_on_disk(frame: pd.DataFrame, tmp_path: Path) -> None:
    paths = write_files(frame, tmp_path / "card")
    assert [path.name for path in paths] == ["cost.csv", "cost.md", "cost.png", "cost.svg", "cost.pdf"]
    assert all(path.stat().st_size for path in paths)
    assert "| tokens | context 16 | context 248 |" in paths[1].read_text().splitlines()
    assert build_cost_table(frame).row_count == 4, "1, 2, 8 tokens and the ceiling"


def test_card_of_a_configured_target(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, frame: pd.DataFrame) -> None:
    target = SimpleNamespace(name="tiny", model=tiny_language_model())
    monkeypatch.setattr("specbench.diagnose.roofline.load_target", lambda settings: target)
    monkeypatch.setattr(roofline, "measure_forwards", lambda model: frame)
    settings = compose_run(["target.weights=random", "target.config={a: 1}", "target.shape=7b"])
    table = roofline.write_card(settings, tmp_path).table
    assert str(table.title).startswith("One eager forward of tiny, expanded to 7b, random weights\nfloat64 on ")
    provenance = json.loads((tmp_path / "run.json").read_text())
    assert (provenance["target"], provenance["settings"]) == ("tiny", settings.recorded["target"])
    RunDirectory(tmp_path).write_config({})
    with pytest.raises(InputError, match="holds a run; choose another folder"):
        roofline.write_card(compose_run([]), tmp_path)
