"""`specbench compare`: compare two runs, or two checkouts that took turns in one run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from specbench.analysis.loaded_run import LoadedRun, order_methods, read_run
from specbench.analysis.statistics import Interval
from specbench.analysis.windows import is_loaded
from specbench.compare import runs
from specbench.compare.baseline import ALONE, RATE, Drift, estimate_drift, judge_baseline
from specbench.compare.gate import Change, Decision, estimate_change, estimate_paired_change
from specbench.compare.power import describe_paired_power, describe_power
from specbench.errors import InputError
from specbench.records.trial import BASELINE

REFERENCE_ENGINE = "reference"  # the engine that runs the other checkout


@dataclass(frozen=True)
class Comparison:
    """counted: turns whose counters differ, by method; changes: of ratios inside a run; baseline: of autoregressive's own rate.

    reference: None for a first run, which becomes the reference. power: what this many runs can decide. remarks: on the
    baseline's drift, or why it is not compared. copy: both hold the same measurements.
    """

    reference: str | None
    new: str
    counted: list[runs.CounterDifference]
    changes: list[Change]
    baseline: Change | None = None
    power: str = ""
    remarks: tuple[str, ...] = ()
    copy: bool = False

    @property
    def judged(self) -> list[Change]:
        """Everything that has a verdict, the baseline last."""
        return self.changes + ([self.baseline] if self.baseline else [])

    @property
    def verdict(self) -> Decision:
        """fail if any counter differs or any change fails, else undecided if any is."""
        verdicts = {change.verdict for change in self.judged}
        if "fail" in verdicts or any(row.differing for row in self.counted):
            return "fail"
        return "undecided" if "undecided" in verdicts else "pass"


def compare_runs(reference: Path, new: Path, factors: Sequence[str] = ()) -> Comparison:
    """Compare a run with a run, or with the latest runs of a folder. Raises InputError for runs that are not comparable."""
    fresh = runs.read_side(new)
    olds = [run for run in runs.read_side(reference) if _identify_run(run) not in map(_identify_run, fresh)]
    if not olds:
        raise InputError(f"{reference} holds no run but {fresh[-1].name} itself")
    originals = [run for run in olds if not runs.is_copy(run, fresh[-1])]
    old = (originals or olds)[-1]
    if loaded := next((run.name for run in (*olds, *fresh) if is_loaded(run.trials)), None):
        raise InputError(f"{loaded} was made under load: its requests waited for each other, so its turns cannot be compared")
    runs.check_methods(old, fresh[-1])
    runs.check_comparable([*(originals or olds), *fresh], factors)
    runs.check_one_place(fresh)
    ratios = [pair for pair in runs.list_ratios(old) if pair in runs.list_ratios(fresh[-1])]
    if not ratios:
        raise InputError(f"{fresh[-1].name} and {old.name} have no timed method in common")
    counters = runs.compare_counters(old, fresh[-1])
    if not originals:
        return _accept_copy(old, fresh[-1], counters, ratios)
    return _compare_stored(originals, fresh, counters, ratios)


def _compare_stored(
    olds: Sequence[LoadedRun], fresh: Sequence[LoadedRun], counters: list[runs.CounterDifference], ratios: list[tuple[str, str]]
) -> Comparison:
    elsewhere = runs.find_other_place(olds[-1], fresh[-1])
    changes = [_compare_ratio(olds, fresh, method, over, len(ratios)) for method, over in ratios]
    baseline, remark = None, f"{RATE}: not compared, as {elsewhere} differs; only ratios inside a run can be"
    drift: Drift | None = None
    if elsewhere is None:
        baseline, drift = _compare_baseline(olds, fresh, ratios)
        remark = f"{RATE}: interval at {ALONE:.0%}, including the drift of equal processes: {drift.source}"
    power = describe_power(changes, len(olds), len(fresh), drift)
    return Comparison(olds[-1].name, fresh[-1].name, counters, changes, baseline, power, (remark,))


def _accept_copy(
    old: LoadedRun, new: LoadedRun, counters: list[runs.CounterDifference], ratios: list[tuple[str, str]]
) -> Comparison:
    same = [Change(f"{method} over {over}", 0, Interval(1.0, 1.0, 1.0)) for method, over in ratios]
    remark = f"{new.name} is a copy of {old.name}: the same times in every turn, which say nothing about another run"
    return Comparison(old.name, new.name, counters, same, remarks=(remark,), copy=True)


def accept_first_reference(new: Path) -> Comparison:
    """Return the comparison of a run that becomes the first reference."""
    return Comparison(None, read_run(new).name, [], [])


def _identify_run(run: LoadedRun) -> tuple[str, str]:
    """Return what a run and a copy of it have in common."""
    return run.name, str(run.provenance.get("started"))


def _compare_ratio(olds: Sequence[LoadedRun], fresh: Sequence[LoadedRun], method: str, over: str, together: int) -> Change:
    old, new = (runs.align_log_ratios(side, method, over) for side in (olds, fresh))
    if old.index.intersection(new.index).empty:
        raise InputError(f"{fresh[-1].name} and {olds[-1].name} have no finished question of {method} and {over} in common")
    return estimate_change(f"{method} over {over}", old, new, together)


def _compare_baseline(
    olds: Sequence[LoadedRun], fresh: Sequence[LoadedRun], ratios: list[tuple[str, str]]
) -> tuple[Change, Drift]:
    here = [run for run in olds if runs.find_other_place(run, fresh[-1]) is None]
    old, new = (runs.align_log_rates(side, BASELINE) for side in (here, fresh))
    drift = estimate_drift(old, new)
    methods = [method for method, over in ratios if over == BASELINE]
    over_methods = _compare_over_methods(here, fresh, methods) if methods else None
    return judge_baseline(old, new, over_methods, drift), drift


def _compare_over_methods(olds: Sequence[LoadedRun], fresh: Sequence[LoadedRun], methods: Sequence[str]) -> Change:
    """Compare autoregressive's rate over the geometric mean of the methods' in the same run."""
    old, new = (_average([runs.align_log_ratios(side, BASELINE, method) for method in methods]) for side in (olds, fresh))
    return estimate_change(f"{BASELINE} over the methods", old, new, together=1)


def _average(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return the mean of log ratios, where all of them are there."""
    return (sum(frames[1:], frames[0]) / len(frames)).dropna(axis="columns", how="all")


def compare_checkouts(path: Path, exchanged: bool = False) -> Comparison:
    """Compare this checkout with the one whose turns are METHOD@reference in the same run. exchanged: the other way round."""
    run = read_run(path)
    labels = order_methods([run])
    methods = [label for label in labels if f"{label}@{REFERENCE_ENGINE}" in labels]
    if not methods:
        raise InputError(f"{path}: none of its methods was also run on engine {REFERENCE_ENGINE}")
    for trial in run.trials:
        if trial.method.endswith(f"@{REFERENCE_ENGINE}") and trial.finish_reason == "error":
            raise InputError(f"{path}: {trial.method} stopped, so there is nothing to compare with: {trial.error}")
    sides = [(method, f"{method}@{REFERENCE_ENGINE}")[:: -1 if exchanged else 1] for method in methods]
    changes = []
    for new, old in sides:
        ratios = runs.compute_log_ratios(run, new, old)
        if ratios.empty:
            raise InputError(f"{path}: no question that both {new} and {old} have finished")
        changes.append(estimate_paired_change(f"{new} over {old}", ratios, len(sides)))
    counters = runs.compare_paired_counters(run, methods, REFERENCE_ENGINE)
    power = describe_paired_power(len(sides), changes)
    return Comparison(f"{run.name}@{REFERENCE_ENGINE}", run.name, counters, changes, power=power)
