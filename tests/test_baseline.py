"""The run's baseline and the other ways to decode autoregressively."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from specbench.analysis.loaded_run import read_run
from specbench.analysis.summary import summarise
from specbench.records.trial import BASELINE
from specbench.report.alarms import find_alarms
from specbench.report.baseline import describe_rivals, find_faster
from specbench.running.baseline import ROUNDS, ROW_ROUNDS, list_other_dtypes, measure_rates, open_engines
from tests.conftest import Cli, Tiny
from tests.fake_engine import FakeEngine
from tests.tiny import tiny_language_model


def test_a_run_times_its_baseline_and_the_other_ways(tiny: Tiny, cli: Cli, tmp_path: Path) -> None:
    chosen = ["check_baseline=true", "task=[qa]", "method=[]", "limit=1", "repeats=1", "out=run"]
    assert cli("run", *tiny.overrides(*chosen)).status == 0
    recorded = json.loads((tmp_path / "run" / "run.json").read_text())
    rates, by_rows = recorded["baseline"], recorded["forward_ms"]
    ways = [(way["engine"], way["dtype"]) for way in rates]
    assert ways[0] == ("native", "float32"), "the run's own way comes first"
    assert sorted(ways) == [("hf", "bfloat16"), ("hf", "float32"), ("native", "bfloat16"), ("native", "float32")]
    assert all(len(way["tokens_per_second"]) == ROUNDS and min(way["tokens_per_second"]) > 0 for way in rates)
    assert [(one["rows"], len(one["milliseconds"])) for one in by_rows] == [(rows, ROW_ROUNDS) for rows in (1, 2, 4, 8)]


@pytest.mark.parametrize("kind", ["eager", "static"])
def test_timing_other_baselines_leaves_the_runs_forward_as_it_is(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specbench.models.forwards.SMALLEST", 0)
    monkeypatch.setattr("specbench.decoding.runner._compile", lambda *_: pytest.fail("compiled"))
    model = tiny_language_model()
    model.runner.kind = kind
    open_engines({"float64": model})
    assert model.runner.kind == kind


def test_a_rival_that_cannot_generate_is_dropped_and_the_run_goes_on(
    tiny: Tiny, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AttributeError("no attribute 'generate'")

    monkeypatch.setattr("specbench.engine.hf.TransformersGenerate.generate", refuse)
    chosen = ["check_baseline=true", "task=[qa]", "method=[]", "limit=1", "repeats=1", "out=run"]
    assert cli("run", *tiny.overrides(*chosen)).status == 0
    recorded = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [(way["engine"], way["dtype"]) for way in recorded["baseline"]] == [("native", "float32"), ("native", "bfloat16")]
    assert recorded["baseline_failed"].keys() == {"hf float32", "hf bfloat16"}
    run = read_run(tmp_path / "run")
    said = [alarm.message for alarm in find_alarms(run, summarise(run)) if alarm.method == BASELINE]
    assert any(line.startswith("not compared with hf float32, which failed: AttributeError: no attribute") for line in said)


def test_a_way_that_fails_in_any_round_has_no_rates() -> None:
    calls = iter("abc")

    def fail(label: str, prompt: list[int]) -> str:
        return next(calls)

    rates, failed = measure_rates({("native", "a"): FakeEngine(lambda *_: "text"), ("hf", "a"): FakeEngine(fail)}, [65])
    assert rates == [way("native", "a", *[round(4 / 0.75, 3)] * ROUNDS)]
    assert list(failed) == ["hf a"] and failed["hf a"].startswith("StopIteration: ")


def test_another_engine_first_makes_its_own_way_the_measure(tiny: Tiny, cli: Cli, tmp_path: Path) -> None:
    chosen = ["check_baseline=true", "engine=[hf]", "task=[qa]", "method=[]", "limit=1", "repeats=1", "out=run"]
    assert cli("run", *tiny.overrides(*chosen)).status == 0
    first, *_ = json.loads((tmp_path / "run" / "run.json").read_text())["baseline"]
    assert (first["engine"], first["dtype"]) == ("hf", "float32")


@pytest.mark.parametrize(("free", "expected"), [(10**9, ["float32", "bfloat16"]), (10, [])])
def test_other_dtypes_are_those_of_the_device_that_fit_its_memory(
    monkeypatch: pytest.MonkeyPatch, free: int, expected: list[str]
) -> None:
    monkeypatch.setattr("specbench.running.baseline.get_free_memory", lambda device: free)
    assert list_other_dtypes(tiny_language_model("llama", layers=1)) == expected


def test_packed_float32_weights_count_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_language_model("llama", layers=1)
    weights = sum(p.numel() for p in model.model.parameters())
    monkeypatch.setattr("specbench.models.load.can_pack", lambda device, dtype: dtype == torch.float32)
    monkeypatch.setattr("specbench.running.baseline.get_free_memory", lambda device: 6 * weights)
    assert list_other_dtypes(model) == ["bfloat16"], "0.7 * 6 = 4.2 bytes per weight: 2 fit, 4 + 4 do not"
    model.quantised = "gptq"
    assert list_other_dtypes(model) == [], "quantised layers have a type of their own"


def way(engine: str, dtype: str, *rates: float) -> dict[str, Any]:
    return {"engine": engine, "dtype": dtype, "tokens_per_second": list(rates)}


@pytest.mark.parametrize(
    ("rival", "found"),
    [((11.0, 22.0), {"hf float32": 1.1}), ((11.0, 20.5), {}), ((9.0, 18.0), {})],
)
def test_only_a_way_that_is_faster_in_every_round_counts(rival: tuple[float, ...], found: dict[str, float]) -> None:
    own = way("native", "float32", 10.0, 20.0)
    assert find_faster([own, way("hf", "float32", *rival)]) == pytest.approx(found)
    assert find_faster([own]) == find_faster([]) == {}


def test_ratios_are_reported_by_name() -> None:
    rates = [way("native", "float32", 10.0, 20.0, 30.0), way("native", "bfloat16", 8.0, 16.0, 30.0)]
    assert describe_rivals(rates) == "native bfloat16 0.80×" and describe_rivals([]) == ""
