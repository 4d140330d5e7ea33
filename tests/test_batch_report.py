"""The report of a sweep over the batch: where each method stops paying."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from specbench.analysis.loaded_run import read_run
from specbench.analysis.summary import summarise
from specbench.records.run_directory import RunDirectory
from specbench.report.batches import BreakEven, find_break_even, format_batches, tabulate_batches
from specbench.report.render import render_report
from tests.fake_run import CONFIG, PROVENANCE, made_up_trials


def cells(*speedups: float, batches: tuple[int, ...] = (1, 2, 4, 8)) -> pd.DataFrame:
    """Overall rows of a method whose intervals are a tenth wide on each side."""
    lows, highs = [value - 0.1 for value in speedups], [value + 0.1 for value in speedups]
    return pd.DataFrame({"batch": batches, "speedup": speedups, "speedup_low": lows, "speedup_high": highs})


@pytest.mark.parametrize(
    ("speedups", "pays", "costs", "crossing"),
    [
        ((2.0, 1.5, 1.05, 0.5), 2, 8, 4.26),
        ((2.0, 1.5, 1.5, 1.2), 8, None, None),
        ((0.5, 0.5, 0.4, 0.3), None, 1, None),
        ((1.05, 1.4, 0.6, 0.5), None, 4, 2.83),
    ],
)
def test_where_a_method_stops_paying(
    speedups: tuple[float, ...], pays: int | None, costs: int | None, crossing: float | None
) -> None:
    found = find_break_even(cells(*speedups))
    expected = [float("nan") if value is None else value for value in (pays, costs, crossing)]
    assert found == pytest.approx(BreakEven(*expected), abs=0.01, nan_ok=True)


@pytest.fixture
def sweep(tmp_path: Path) -> list[Path]:
    """Runs at three batches: what takes a group of two as long as one question, and drafts twice as dear at four."""
    runs = []
    for batch in (1, 2, 4):
        run = RunDirectory(tmp_path / f"batch={batch}")
        run.write_config({**CONFIG, "batch": batch})
        run.write_provenance(PROVENANCE)
        for one in made_up_trials({"pld": 0.7, "sps": 0.8}, ("qa", "rag"), questions=8):
            number, place = divmod(int(one.question_id) % 100, batch)
            group = 100 * ("qa", "rag").index(one.task) + number
            grouped: dict[str, Any] = {} if batch == 1 else {"batch": batch, "group": group, "place": place}
            dearer = 1.0 if one.method == "autoregressive" else 2.0**batch / 2
            seconds: dict[str, Any] = {"decode_s": 0.6 * dearer if batch > 1 else one.decode_s, "prefill_s": 0.03}
            run.append_trials(dataclasses.replace(one, **grouped, **seconds))
        runs.append(run.path)
    return runs


def test_the_report_shows_speedup_by_batch_and_the_break_even(sweep: list[Path], tmp_path: Path) -> None:
    report = render_report(sweep, tmp_path / "report")
    table = pd.read_csv(report.out / "batches.csv")
    assert list(table["batch"]) == [1, 2, 4] * 2 and list(table["method"]) == ["pld"] * 3 + ["sps"] * 3
    assert (table["equal_turns"] == table["turns"]).all() and table["turns"].gt(0).all()
    assert table["mean_accepted_tokens"].groupby(table["method"]).nunique().eq(1).all(), "the same drafts are accepted"
    assert table.set_index(["method", "batch"]).loc[("pld", 4), "costs_from"] == 2
    text = (report.out / "batches.md").read_text()
    assert text.splitlines()[0] == "| method | B = 1 | B = 2 | B = 4 | pays up to | break-even |"
    page = report.page.read_text()
    assert "Speedup by batch" in page and ">break-even</th>" in page
    assert (report.out / "batch.png").exists()


def test_turns_with_other_counts_are_told(sweep: list[Path]) -> None:
    runs = [read_run(path) for path in sweep]
    changed = next(trial for trial in runs[2].trials if trial.method == "pld")
    other = dataclasses.replace(changed, accepted=[0, *(changed.accepted or [])[1:]])
    runs[2] = dataclasses.replace(runs[2], trials=[other if one is changed else one for one in runs[2].trials])
    summary = pd.concat([summarise(run) for run in runs])
    table = tabulate_batches(runs, summary)
    row = table[(table["method"] == "pld") & (table["batch"] == 4)].iloc[0]
    assert row["equal_turns"] == row["turns"] - 1
    assert "| `pld` |" in format_batches(table)
