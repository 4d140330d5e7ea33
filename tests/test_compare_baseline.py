"""`specbench compare` and the baseline: a slower one is never passed, equal ones rarely fail, and what can be decided is said."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from specbench import ROOT
from specbench.compare.baseline import ALONE, DRIFT_SD, RATE, SEVERAL, estimate_drift, judge_baseline
from specbench.compare.comparison import Comparison, compare_checkouts, compare_runs
from specbench.compare.gate import FAILS_BELOW, RUN_SD, Change, Decision, estimate_change, find_passing_runs, find_smallest
from specbench.compare.power import describe_paired_power
from specbench.compare.render import build_comparison_table, format_comparison, format_notes, format_title, write_junit
from specbench.errors import InputError
from specbench.records.trial import BASELINE, Trial, hash_ids
from tests.conftest import Cli, Refuse
from tests.fake_run import made_up_trials, write_run

METHODS = {"pld": 0.4, "sps": 0.7}
TASKS = ("qa", "rag", "translation")
Rates = dict[str, pd.Series]  # logs, by method


def slow_down(trials: Sequence[Trial], **by: float) -> list[Trial]:
    """The same turns, some methods' slower by a share of their time."""
    return [
        replace(one, prefill_s=(one.prefill_s or 0) * (1 + more), decode_s=(one.decode_s or 0) * (1 + more))
        for one in trials
        for more in [by.get(one.method, 0.0)]
    ]


def in_process(trials: Sequence[Trial], seed: int, **slower: float) -> list[Trial]:
    """The same turns in another process: all drift together, each method a little by itself, each turn by its own noise."""
    rng = np.random.default_rng(seed)
    drift = rng.normal(0, DRIFT_SD)
    own = {method: rng.normal(0, RUN_SD / math.sqrt(2)) for method in dict.fromkeys(trial.method for trial in trials)}
    return [
        slow_down([trial], **{trial.method: math.exp(drift + own[trial.method] + rng.normal(0, 0.005)) - 1})[0]
        for trial in slow_down(trials, **slower)
    ]


def compare(tmp_path: Path, old: Sequence[Trial], new: Sequence[Trial]) -> Comparison:
    return compare_runs(write_run(tmp_path / "old", old).path, write_run(tmp_path / "new", new).path)


@pytest.fixture(scope="module")
def trials() -> list[Trial]:
    return made_up_trials(METHODS, TASKS, questions=8)


def test_a_baseline_slower_by_10_percent_fails_where_the_methods_kept_their_speed(tmp_path: Path, trials: list[Trial]) -> None:
    """The methods' speedups rise by 10 %, which was a pass."""
    found = compare(tmp_path, trials, slow_down(trials, autoregressive=0.1))
    assert found.verdict == "fail" and format_title(found) == "new against old: FAILED"
    assert found.baseline is not None and found.baseline.ratio.estimate == pytest.approx(1 / 1.1)
    assert any(line.startswith("autoregressive's own rate fell while the methods") for line in format_notes(found))


@pytest.mark.parametrize("share", [0.02, 0.05, 0.1])
def test_a_slowdown_of_everything_within_the_drift_is_undecided(tmp_path: Path, trials: list[Trial], share: float) -> None:
    """As a slower decode loop, or a slower machine: ratios inside the runs cannot tell."""
    found = compare(tmp_path, trials, slow_down(trials, autoregressive=share, pld=share, sps=share))
    assert found.verdict == "undecided" and "undecided" in format_title(found) and RATE in format_comparison(found)


def test_a_slowdown_of_everything_beyond_the_drift_fails(tmp_path: Path, trials: list[Trial]) -> None:
    found = compare(tmp_path, trials, slow_down(trials, autoregressive=0.15, pld=0.15, sps=0.15))
    assert found.verdict == "fail" and [one.verdict for one in found.changes] == ["undecided", "undecided"]


def test_faster_methods_are_no_slower_baseline(tmp_path: Path, trials: list[Trial]) -> None:
    found = compare(tmp_path, trials, slow_down(trials, pld=-0.1, sps=-0.1))
    assert found.verdict == "undecided" and [one.verdict for one in found.changes] == ["pass", "pass"]
    assert found.baseline is not None and found.baseline.verdict == "undecided"


def test_a_copy_is_called_one(tmp_path: Path, trials: list[Trial], cli: Cli) -> None:
    old = write_run(tmp_path / "old", trials).path
    shutil.copytree(old, tmp_path / "copy")
    status, out, _ = cli("compare", "old", "copy", "--undecided", "fail", "--json=found.json")
    assert status == 0 and "copy against old: passed, a copy of it" in out
    assert "copy is a copy of old: the same times in every turn, which say nothing about another run" in out
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["copy"] and found["verdict"] == "pass" and found["changes"][0]["ratio"]["low"] == 1
    other = write_run(tmp_path / "other", [*trials[:-1], replace(trials[-1], output_sha256=hash_ids([1]))]).path
    assert compare_runs(old, other).verdict == "fail", "equal times excuse no other text"


def test_a_reference_does_not_follow_runs_that_are_slower_each_night(tmp_path: Path, trials: list[Trial], cli: Cli) -> None:
    """Each by 5 %, which is undecided beside the night before."""
    for night in range(4):
        slower = dict.fromkeys((BASELINE, *METHODS), 1.05**night - 1)
        write_run(tmp_path / f"n{night}", slow_down(trials, **slower), started=f"2026-11-{night + 1:02}T00:00:00Z")
    added = [cli("compare", "rolling", f"n{night}", "--add") for night in range(4)]
    assert [one.status for one in added] == [0, 0, 0, 1] and [path.name for path in (tmp_path / "rolling").iterdir()] == ["n0"]
    assert "not added to rolling: only a run that passed becomes a reference" in added[1].out


def test_a_run_that_passed_becomes_a_reference(tmp_path: Path, trials: list[Trial], cli: Cli) -> None:
    for day in range(SEVERAL):
        started = f"2026-11-{day + 1:02}T00:00:00Z"
        write_run(tmp_path / "rolling" / f"r{day}", slow_down(trials, **dict.fromkeys(METHODS, 0.001 * day)), started=started)
    write_run(tmp_path / "new", slow_down(trials, autoregressive=-0.001), started="2026-12-01T00:00:00Z")
    status, out, _ = cli("compare", "rolling", "new", "--add")
    assert status == 0 and "passed" in out and "not added" not in out
    assert (tmp_path / "rolling" / "new" / "config.yaml").is_file()


def test_copies_in_a_folder_of_references_do_not_count(tmp_path: Path, trials: list[Trial]) -> None:
    for day in range(3):
        started = f"2026-11-{day + 1:02}T00:00:00Z"
        write_run(tmp_path / "rolling" / f"r{day}", in_process(trials, day), started=started)
    shutil.copytree(tmp_path / "rolling" / "r2", tmp_path / "new")
    shutil.copytree(tmp_path / "rolling" / "r2", tmp_path / "rolling" / "another name")
    found = compare_runs(tmp_path / "rolling", tmp_path / "new")
    assert found.reference == "r1" and not found.copy


def test_one_method_slower_by_6_percent_is_open_with_one_run_a_side_and_fails_with_five(tmp_path: Path, cli: Cli) -> None:
    """Of twelve methods."""
    trials = made_up_trials({f"m{number:02}": 0.4 + number / 50 for number in range(12)}, TASKS, questions=4)
    for run in range(5):
        write_run(tmp_path / "old" / f"o{run}", in_process(trials, run), started=f"2026-11-{run + 1:02}T00:00:00Z")
        slower = in_process(trials, 100 + run, m03=0.064)
        write_run(tmp_path / "new" / f"n{run}", slower, started=f"2026-12-{run + 1:02}T00:00:00Z")
    status, out, _ = cli("compare", "old/o2", "new/n2")
    assert status == 0 and "n2 against o2: undecided (" in out
    first, *_ = out.splitlines()
    assert first.startswith("can decide (12 ratios of 12 questions, with a probability of 80%): slowdowns of at least 6.")
    assert cli("compare", "old/o2", "new/n2", "--undecided", "fail").status == 1
    assert cli("compare", "old/o2", "new/n2", "--undecided=pass").status == 0
    five = compare_runs(tmp_path / "old", tmp_path / "new")
    assert [one.what for one in five.changes if one.verdict == "fail"] == ["m03 over autoregressive"]


def test_an_unknown_choice_for_the_undecided_is_refused(refuse: Refuse) -> None:
    assert refuse("compare", "a", "b", "--undecided", "fial") == "--undecided fial: expected fail or pass"
    assert refuse("compare", "--against", "HEAD", "--undecided", "no") == "--undecided no: expected fail or pass"


def test_rates_of_two_machines_are_not_compared(tmp_path: Path, trials: list[Trial]) -> None:
    old = write_run(tmp_path / "old", trials).path
    new = write_run(tmp_path / "new", slow_down(trials, autoregressive=0.3, pld=0.3, sps=0.3), machine={"cpu": "another"}).path
    found = compare_runs(old, new, ["machine.cpu"])
    assert found.baseline is None and found.verdict == "undecided"
    assert f"{RATE}: not compared, as machine.cpu differs; only ratios inside a run can be" in format_notes(found)
    write_junit(found, tmp_path / "junit.xml")
    assert [case.get("name") for case in ElementTree.parse(tmp_path / "junit.xml").iterfind("testcase/skipped/..")] == [
        "pld over autoregressive",
        "sps over autoregressive",
    ]


def test_new_runs_come_from_one_machine(tmp_path: Path, trials: list[Trial]) -> None:
    old = write_run(tmp_path / "old", trials, machine={"cpu": "a"}).path
    for day, cpu in enumerate("ab"):
        write_run(tmp_path / "new" / f"n{day}", in_process(trials, day), machine={"cpu": cpu}, started=f"2026-12-0{day + 1}")
    with pytest.raises(InputError, match="n0 and n1, both new, differ in machine.cpu: expected new runs of one machine"):
        compare_runs(old, tmp_path / "new", ["machine.cpu"])


def test_each_interval_says_its_own_level_and_a_confirmed_baseline_its_own_rule(tmp_path: Path, trials: list[Trial]) -> None:
    found = compare(tmp_path, trials, slow_down(trials, autoregressive=0.1))
    assert found.baseline is not None and found.baseline.confirmed and found.baseline.ratio.high > FAILS_BELOW
    said = format_comparison(found)
    assert "- intervals: 98% for all ratios together" in said and f"- {RATE}: interval at {ALONE:.0%}, including" in said
    assert said.endswith("fails if it fell over the methods, too, and equal processes look as slow in less than 5% of cases.\n")
    assert pytest.approx(0.99) == ALONE, "half of the 2 % that all ratios together may be wrong"
    assert [str(column.header) for column in build_comparison_table(found).columns][2] == "interval"


@pytest.mark.parametrize(("runs", "source"), [(1, "3.0% as documented"), (SEVERAL, "as the 4 runs of the reference show")])
def test_the_drift_is_the_documented_one_until_the_reference_shows_its_own(
    tmp_path: Path, trials: list[Trial], runs: int, source: str
) -> None:
    for day in range(runs):
        started = f"2026-11-{day + 1:02}T00:00:00Z"
        write_run(tmp_path / "rolling" / f"r{day}", slow_down(trials, **dict.fromkeys(METHODS, 0.001 * day)), started=started)
    new = write_run(tmp_path / "new", slow_down(trials, autoregressive=0.06, pld=0.06, sps=0.06)).path
    found = compare_runs(tmp_path / "rolling", new)
    assert source in found.remarks[0]
    expected: Decision = "undecided" if runs == 1 else "fail"
    assert found.baseline is not None and found.baseline.verdict == expected, "a reference without drift finds 6 %"


def test_two_versions_in_one_run_say_what_is_undecided(tmp_path: Path, trials: list[Trial]) -> None:
    paired = [replace(trial, method=f"{trial.method}@reference") for trial in trials]
    both = write_run(tmp_path / "both", [*slow_down(trials, autoregressive=0.02), *paired]).path
    found = compare_checkouts(both)
    assert found.verdict == "undecided" and "autoregressive over autoregressive@reference" in format_title(found)
    assert found.power.startswith("can decide (3 ratios of 24 questions, with a probability of 80%): slowdowns of at least")
    assert describe_paired_power(3).endswith("no slowdown under 2.7%, however many the questions")


def draw_run(rng: np.random.Generator, slower: float, everything: float) -> Rates:
    """Log rates of autoregressive decoding and two methods on 24 questions in one process."""
    index = pd.MultiIndex.from_tuples([(at % 3, at) for at in range(24)], names=["task", "question_id"])
    drift = rng.normal(0, DRIFT_SD) - everything
    labels = (BASELINE, *METHODS)
    own = {label: rng.normal(0, RUN_SD / math.sqrt(2)) - slower * (label == BASELINE) for label in labels}
    return {label: pd.Series(drift + own[label] + rng.normal(0, 0.01, 24), index=index) for label in labels}


def align(side: Sequence[Rates], pick: Callable[[Rates], pd.Series]) -> pd.DataFrame:
    return pd.DataFrame({at: pick(run) for at, run in enumerate(side)})


def draw_verdict(rng: np.random.Generator, slower: float = 0.0, everything: float = 0.0, runs: int = 1) -> Decision:
    """The verdict on stored runs, as comparison.py reaches it."""
    olds = [draw_run(rng, 0.0, 0.0) for _ in range(runs)]
    news = [draw_run(rng, slower, everything)]
    old_rate, new_rate = (align(side, lambda run: run[BASELINE]) for side in (olds, news))
    changes = []
    for method in METHODS:
        old, new = (align(side, lambda run: run[method] - run[BASELINE]) for side in (olds, news))  # noqa: B023
        changes.append(estimate_change(method, old, new, 2))
    old, new = (align(side, lambda run: run[BASELINE] - (run["pld"] + run["sps"]) / 2) for side in (olds, news))
    over_methods = estimate_change("over the methods", old, new, 1)
    changes.append(judge_baseline(old_rate, new_rate, over_methods, estimate_drift(old_rate, new_rate)))
    return Comparison("old", "new", [], changes).verdict


@pytest.mark.parametrize("runs", [1, 6])
@pytest.mark.parametrize("times", [pytest.param(1, id="few"), pytest.param(10, id="many", marks=pytest.mark.slow)])
def test_equal_processes_fail_at_most_once_in_a_hundred(runs: int, times: int) -> None:
    rng = np.random.default_rng(runs)
    verdicts = [draw_verdict(rng, runs=runs) for _ in range(200 * times)]
    assert verdicts.count("fail") <= 4 * times**0.5, f"{verdicts.count('fail')} of {len(verdicts)}; 1 % are allowed"


@pytest.mark.parametrize("runs", [1, 6])
@pytest.mark.parametrize("times", [pytest.param(1, id="few"), pytest.param(10, id="many", marks=pytest.mark.slow)])
def test_a_slower_baseline_never_passes(runs: int, times: int) -> None:
    """By 10 %, alone or with everything else. Alone it mostly fails, too."""
    rng = np.random.default_rng(runs)
    alone = [draw_verdict(rng, slower=math.log(1.1), runs=runs) for _ in range(150 * times)]
    together = [draw_verdict(rng, everything=math.log(1.1), runs=runs) for _ in range(150 * times)]
    assert "pass" not in alone and "pass" not in together
    assert alone.count("fail") >= 0.6 * len(alone), f"{alone.count('fail')} of {len(alone)}"


@pytest.mark.parametrize("runs", [1, 4])
def test_the_smallest_slowdown_that_is_named_fails_four_times_out_of_five(runs: int) -> None:
    rng = np.random.default_rng(0)
    noise = 0.01
    smallest = find_smallest(2 * noise**2 * (1 if runs == 1 else math.pi / 2 / runs) / 24, runs, runs, 13)
    found = []
    for _ in range(150):
        slower = draw_sides(rng, runs, -math.log(1 - smallest))
        found.append(estimate_change("x", *slower, 13).verdict)
    assert 0.65 <= found.count("fail") / len(found) <= 0.95, f"{smallest:.3f}: {found.count('fail')} of {len(found)}"


def draw_sides(rng: np.random.Generator, runs: int, slower: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    index = pd.MultiIndex.from_tuples([(at % 3, at) for at in range(24)], names=["task", "question_id"])
    old, new = (rng.normal(0, RUN_SD, runs) + rng.normal(0, 0.01, (24, runs)) for _ in range(2))
    return pd.DataFrame(old, index=index), pd.DataFrame(new - slower, index=index)


def test_the_documented_table_is_the_gate_s() -> None:
    """24 questions whose times scatter by 1 %."""
    page = (ROOT / "docs" / "regression.md").read_text(encoding="utf-8")
    for ratios in (2, 12):
        noise = {runs: 2 * 0.01**2 * (math.pi / 2 / runs if runs > 2 else 1 / runs) / 24 for runs in (1, 3, 5, 10)}
        cells = [f"{find_smallest(variance, runs, runs, ratios):.1%}".replace("%", " %") for runs, variance in noise.items()]
        row = f"| {ratios} | {' | '.join(cells)} | {find_passing_runs(noise[3], ratios, 10)} |"
        assert row in page, f"docs/regression.md lacks: {row}"


def test_equal_versions_pass_with_as_many_runs_as_are_named() -> None:
    runs = find_passing_runs(2 * 0.01**2 * math.pi / 2 / 4 / 24, 3, 10)
    assert runs is not None and 2 <= runs <= 6
    rng = np.random.default_rng(0)
    passed = sum(estimate_change("x", *draw_sides(rng, runs, 0.0), 3).verdict == "pass" for _ in range(100))
    assert passed >= 70, f"{passed} of 100 with {runs} runs per side"


def test_a_change_beyond_all_doubt_has_no_chance() -> None:
    index = pd.MultiIndex.from_tuples([("qa", at) for at in range(4)], names=["task", "question_id"])
    same = pd.DataFrame({0: [0.1, 0.2, 0.3, 0.4]}, index=index)
    equal: Change = estimate_change("x", same, same, 1)
    assert equal.chance == pytest.approx(0.5) and estimate_change("x", same, same - 0.1, 1).chance < 1e-5
