"""`specbench compare`: compare two runs, or two checkouts that took turns in one run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isfinite, isnan
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from rich.table import Table

from specbench.analysis.loaded_run import LoadedRun, order_methods, read_run
from specbench.compare import runs
from specbench.compare.gate import FAILS_BELOW, LEVEL, PASSES_ABOVE, Change, estimate_change, estimate_paired_change
from specbench.errors import InputError
from specbench.records.files import write_atomic
from specbench.records.markdown import format_markdown_table
from specbench.records.trial import BASELINE

REFERENCE_ENGINE = "reference"  # the engine that runs the other checkout


@dataclass(frozen=True)
class Comparison:
    """counted: turns whose counters differ, by method; changes: of speed; absolute: of autoregressive's rate, advisory.

    reference: None for a first run, which becomes the reference.
    """

    reference: str | None
    new: str
    counted: list[runs.CounterDifference]
    changes: list[Change]
    absolute: float | None

    @property
    def failed(self) -> bool:
        """Whether any counter differs or any ratio fails."""
        return any(row.differing for row in self.counted) or any(change.verdict == "fail" for change in self.changes)


def compare_runs(reference: Path, new: Path, factors: Sequence[str] = ()) -> Comparison:
    """Compare a run with a run, or with the latest runs of a folder. Raises InputError for runs that are not comparable."""
    fresh = runs.read_side(new)
    olds = [run for run in runs.read_side(reference) if _identify_run(run) not in map(_identify_run, fresh)]
    if not olds:
        raise InputError(f"{reference} holds no run but {fresh[-1].name} itself")
    runs.check_methods(olds[-1], fresh[-1])
    runs.check_comparable([*olds, *fresh], factors)
    ratios = [pair for pair in runs.list_ratios(olds[-1]) if pair in runs.list_ratios(fresh[-1])]
    if not ratios:
        raise InputError(f"{fresh[-1].name} and {olds[-1].name} have no timed method in common")
    changes = [_compare_stored(olds, fresh, method, over, len(ratios)) for method, over in ratios]
    counters = runs.compare_counters(olds[-1], fresh[-1])
    return Comparison(olds[-1].name, fresh[-1].name, counters, changes, _compare_absolute(olds[-1], fresh[-1]))


def accept_first_reference(new: Path) -> Comparison:
    """Return the comparison of a run that becomes the first reference."""
    return Comparison(None, read_run(new).name, [], [], None)


def _identify_run(run: LoadedRun) -> tuple[str, str]:
    """Return what is equal for a run and a copy of it."""
    return run.name, str(run.provenance.get("started"))


def _compare_stored(olds: Sequence[LoadedRun], fresh: Sequence[LoadedRun], method: str, over: str, together: int) -> Change:
    old, new = (runs.align_log_ratios(side, method, over) for side in (olds, fresh))
    if old.index.intersection(new.index).empty:
        raise InputError(f"{fresh[-1].name} and {olds[-1].name} have no finished question of {method} and {over} in common")
    return estimate_change(f"{method} over {over}", old, new, together)


def compare_checkouts(path: Path, exchanged: bool = False) -> Comparison:
    """Compare this checkout with the one whose turns are METHOD@reference in the same run. exchanged: the other way round."""
    run = read_run(path)
    labels = order_methods([run])
    methods = [label for label in labels if f"{label}@{REFERENCE_ENGINE}" in labels]
    if not methods:
        raise InputError(f"{path}: none of its methods also ran on engine {REFERENCE_ENGINE}")
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
    return Comparison(f"{run.name}@{REFERENCE_ENGINE}", run.name, counters, changes, None)


def _compare_absolute(old: LoadedRun, new: LoadedRun) -> float | None:
    """Return the new over the old rate of autoregressive decoding."""
    rates = [run.frame[(run.frame["method"] == BASELINE) & ~run.frame["failed"].astype(bool)] for run in (old, new)]
    speeds = [float(rows["new_tokens"].sum() / rows["seconds"].sum()) for rows in rates if len(rows)]
    return speeds[1] / speeds[0] if len(speeds) == 2 else None


def build_comparison_table(comparison: Comparison) -> Table:
    """Return the table for the terminal."""
    table = Table("ratio", "new / reference", f"{LEVEL:.0%} interval, all together", "verdict", title=format_title(comparison))
    for change in comparison.changes:
        style = {"fail": "bold red", "undecided": "yellow"}.get(change.verdict, "")
        table.add_row(*_format_cells(change), style=style)
    return table


def format_notes(comparison: Comparison) -> list[str]:
    """Return the notes below the table, worst first."""
    lines = [
        f"{row.method}: {count} of {row.turns} turns have another {name}"
        for row in comparison.counted
        for name, count in row.differing.items()
    ]
    undecided = [change for change in comparison.changes if change.verdict == "undecided"]
    lines += [f"{change.what}: undecided; {_format_needed(change)}" for change in undecided]
    if comparison.absolute is not None:
        lines.append(f"autoregressive's own rate is {comparison.absolute:.3f} of the reference's; it drifts and decides nothing")
    return lines


def _format_needed(change: Change) -> str:
    if change.needed is None:
        no_interval = isnan(change.ratio.low)
        return "one question per task gives no interval" if no_interval else "too close to a limit for one run to decide"
    more = f" and {change.needed.runs} runs of each side" if change.needed.runs > 1 else ""
    return f"{change.needed.questions} questions{more} would decide, {change.questions} now"


def format_title(comparison: Comparison) -> str:
    """Return the names of both runs and the result."""
    if comparison.reference is None:
        return f"{comparison.new}: first reference, compared with nothing"
    undecided = any(change.verdict == "undecided" for change in comparison.changes)
    verdict = "FAILED" if comparison.failed else "undecided" if undecided else "passed"
    return f"{comparison.new} against {comparison.reference}: {verdict}"


def _format_cells(change: Change) -> tuple[str, str, str, str]:
    interval = "none" if isnan(change.ratio.low) else f"{change.ratio.low:.3f} to {change.ratio.high:.3f}"
    return change.what, f"{change.ratio.estimate:.3f}", interval, change.verdict


def format_comparison(comparison: Comparison) -> str:
    """Return the comparison in Markdown, for the summary of a CI job."""
    title = f"### {format_title(comparison)}\n"
    if comparison.reference is None:
        return title
    header = ("ratio", "new / reference", "interval", "verdict")
    table = format_markdown_table(header, [_format_cells(change) for change in comparison.changes])
    criterion = f"Fails if the whole interval is below {FAILS_BELOW}, passes if its lower limit exceeds {PASSES_ABOVE}."
    return "\n".join([title, *table, "", *(f"- {line}" for line in format_notes(comparison)), "", criterion]) + "\n"


def write_json(comparison: Comparison, path: Path) -> None:
    """Write the comparison as JSON, with null for nan and infinity."""
    plain = {**asdict(comparison), "failed": comparison.failed}
    for row, change in zip(plain["changes"], comparison.changes, strict=True):
        row["verdict"] = change.verdict
    write_atomic(path, json.dumps(_replace_nonfinite(plain), indent=1, allow_nan=False) + "\n")


def _replace_nonfinite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _replace_nonfinite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_replace_nonfinite(inner) for inner in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def write_junit(comparison: Comparison, path: Path) -> None:
    """Write one test per ratio and one per method for its counters; undecided ones and a first reference are skipped."""
    cases: list[tuple[str, str, str, str]] = []  # classname, name, outcome (failure, skipped or empty), message
    if comparison.reference is None:
        cases.append(("reference", comparison.new, "skipped", format_title(comparison)))
    for row in comparison.counted:
        message = ", ".join(f"{name}: {count} of {row.turns} turns" for name, count in row.differing.items())
        cases.append(("counters", row.method, "failure" if message else "", message))
    for change in comparison.changes:
        message = f"{change.ratio.estimate:.3f} [{change.ratio.low:.3f}, {change.ratio.high:.3f}]"
        outcome = {"pass": "", "fail": "failure", "undecided": "skipped"}[change.verdict]
        cases.append(("speed", change.what, outcome, message))
    outcomes = [outcome for _, _, outcome, _ in cases]
    counts = {"tests": len(cases), "failures": outcomes.count("failure"), "skipped": outcomes.count("skipped")}
    attributes = {name: str(count) for name, count in counts.items()}
    suite = ElementTree.Element("testsuite", {"name": "specbench compare", **attributes})
    for class_, name, outcome, message in cases:
        case = ElementTree.SubElement(suite, "testcase", classname=class_, name=name)
        if outcome:
            ElementTree.SubElement(case, outcome, message=message)
    write_atomic(path, ElementTree.tostring(suite, encoding="unicode", xml_declaration=True))
