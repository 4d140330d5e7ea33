"""`specbench compare`: two runs, or two checkouts that took turns in one run, to a list of changes and one answer."""

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
from specbench.compare.gate import FAILS_BELOW, LEVEL, PASSES_ABOVE, Change, estimate_change, estimate_paired_change
from specbench.compare.runs import (
    CounterDifference,
    align_log_ratios,
    check_comparable,
    compare_counters,
    compare_paired_counters,
    compute_log_ratios,
    list_ratios,
    read_side,
)
from specbench.errors import InputError
from specbench.records.files import write_atomic
from specbench.records.trial import BASELINE

REFERENCE_ENGINE = "reference"  # the engine that runs the other checkout


@dataclass(frozen=True)
class Comparison:
    """counted: turns whose counters differ, by method; changes: of speed; absolute: of autoregressive's own rate, advisory.

    reference: None of the first run, which is one itself.
    """

    reference: str | None
    new: str
    counted: list[CounterDifference]
    changes: list[Change]
    absolute: float | None

    @property
    def failed(self) -> bool:
        return any(one.differing for one in self.counted) or any(one.verdict == "fail" for one in self.changes)


def compare_runs(reference: Path, new: Path, factors: Sequence[str] = ()) -> Comparison:
    """A run against a run, or against the latest of a folder of runs. Raises InputError for runs that are not comparable."""
    fresh = read_side(new)
    olds = [run for run in read_side(reference) if _identify_run(run) not in map(_identify_run, fresh)]
    if not olds:
        raise InputError(f"{reference} holds no run but {fresh[-1].name} itself")
    check_comparable([*olds, *fresh], factors)
    ratios = [pair for pair in list_ratios(olds[-1]) if pair in list_ratios(fresh[-1])]
    if not ratios:
        raise InputError(f"{fresh[-1].name} and {olds[-1].name} have no timed method in common")
    changes = [_compare_stored(olds, fresh, method, over, len(ratios)) for method, over in ratios]
    counters = compare_counters(olds[-1], fresh[-1])
    return Comparison(olds[-1].name, fresh[-1].name, counters, changes, _compare_absolute(olds[-1], fresh[-1]))


def accept_first_reference(new: Path) -> Comparison:
    """Of a run with nothing to compare it with."""
    return Comparison(None, read_run(new).name, [], [], None)


def _identify_run(run: LoadedRun) -> tuple[str, str]:
    """Equal for a run and a copy of it."""
    return run.name, str(run.provenance.get("started"))


def _compare_stored(olds: Sequence[LoadedRun], fresh: Sequence[LoadedRun], method: str, over: str, together: int) -> Change:
    old, new = (align_log_ratios(runs, method, over) for runs in (olds, fresh))
    if old.index.intersection(new.index).empty:
        raise InputError(f"{fresh[-1].name} and {olds[-1].name} have no finished question of {method} and {over} in common")
    return estimate_change(f"{method} over {over}", old, new, together)


def compare_checkouts(path: Path, exchanged: bool = False) -> Comparison:
    """This checkout against the one that took turns with it in a run, as METHOD@reference; exchanged: that against this."""
    run = read_run(path)
    labels = order_methods([run])
    methods = [label for label in labels if f"{label}@{REFERENCE_ENGINE}" in labels]
    if not methods:
        raise InputError(f"{path}: no method of it ran on engine {REFERENCE_ENGINE} too")
    broken = next(
        (one for one in run.trials if one.method.endswith(f"@{REFERENCE_ENGINE}") and one.finish_reason == "error"), None
    )
    if broken:
        raise InputError(f"{path}: {broken.method} stopped, so that there is nothing to compare with: {broken.error}")
    sides = [(method, f"{method}@{REFERENCE_ENGINE}")[:: -1 if exchanged else 1] for method in methods]
    changes = []
    for new, old in sides:
        moved = compute_log_ratios(run, new, old)
        if moved.empty:
            raise InputError(f"{path}: no question that both {new} and {old} have finished")
        changes.append(estimate_paired_change(f"{new} over {old}", moved, len(sides)))
    return Comparison(
        f"{run.name}@{REFERENCE_ENGINE}", run.name, compare_paired_counters(run, methods, REFERENCE_ENGINE), changes, None
    )


def _compare_absolute(old: LoadedRun, new: LoadedRun) -> float | None:
    """New over old rate of autoregressive decoding."""
    rates = [run.frame[(run.frame["method"] == BASELINE) & ~run.frame["failed"].astype(bool)] for run in (old, new)]
    speeds = [float(rows["new_tokens"].sum() / rows["seconds"].sum()) for rows in rates if len(rows)]
    return speeds[1] / speeds[0] if len(speeds) == 2 else None


def build_comparison_table(found: Comparison) -> Table:
    shown = Table("ratio", "new / reference", f"{LEVEL:.0%} interval, all together", "verdict", title=format_title(found))
    for one in found.changes:
        style = {"fail": "bold red", "undecided": "yellow"}.get(one.verdict, "")
        shown.add_row(*_format_cells(one), style=style)
    return shown


def format_notes(found: Comparison) -> list[str]:
    """What stands beside the table, worst first."""
    lines = [
        f"{one.method}: {count} of {one.turns} turns have another {name}"
        for one in found.counted
        for name, count in one.differing.items()
    ]
    lines += [f"{one.what}: undecided; {_format_needed(one)}" for one in found.changes if one.verdict == "undecided"]
    if found.absolute is not None:
        lines.append(f"autoregressive's own rate is {found.absolute:.3f} of the reference's; it drifts, and decides nothing")
    return lines


def _format_needed(one: Change) -> str:
    if one.needed is None:
        return "one question a task has no interval" if isnan(one.ratio.low) else "too near to a limit for one run to decide"
    runs = f" and {one.needed.runs} runs of each side" if one.needed.runs > 1 else ""
    return f"{one.needed.questions} questions{runs} would decide, of {one.questions} now"


def format_title(found: Comparison) -> str:
    if found.reference is None:
        return f"{found.new}: first reference, compared with nothing"
    undecided = any(one.verdict == "undecided" for one in found.changes)
    verdict = "FAILED" if found.failed else "undecided" if undecided else "passed"
    return f"{found.new} against {found.reference}: {verdict}"


def _format_cells(one: Change) -> tuple[str, str, str, str]:
    interval = f"{one.ratio.low:.3f} to {one.ratio.high:.3f}"
    return one.what, f"{one.ratio.estimate:.3f}", interval, one.verdict


def format_comparison(found: Comparison) -> str:
    """For the summary of a job."""
    if found.reference is None:
        return f"### {format_title(found)}\n"
    header = ("ratio", "new / reference", "interval", "verdict")
    lines = [f"### {format_title(found)}", "", "| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(_format_cells(one)) + " |" for one in found.changes]
    rule = f"Fails when the whole interval lies below {FAILS_BELOW}, passes when its lower limit exceeds {PASSES_ABOVE}."
    return "\n".join([*lines, "", *(f"- {line}" for line in format_notes(found)), "", rule]) + "\n"


def write_json(found: Comparison, path: Path) -> None:
    plain = {**asdict(found), "failed": found.failed}
    for row, one in zip(plain["changes"], found.changes, strict=True):
        row["verdict"] = one.verdict
    write_atomic(path, json.dumps(_replace_nonfinite(plain), indent=1, allow_nan=False) + "\n")


def _replace_nonfinite(value: Any) -> Any:
    """With null for what is no number: JSON has none."""
    if isinstance(value, dict):
        return {key: _replace_nonfinite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_replace_nonfinite(inner) for inner in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def write_junit(found: Comparison, path: Path) -> None:
    """A test a ratio, and one a method for its counters; undecided ones are skipped, as is the one of a first reference."""
    suite = ElementTree.Element("testsuite", name="specbench compare")
    if found.reference is None:
        case = ElementTree.SubElement(suite, "testcase", classname="reference", name=found.new)
        ElementTree.SubElement(case, "skipped", message=format_title(found))
    for counters in found.counted:
        case = ElementTree.SubElement(suite, "testcase", classname="counters", name=counters.method)
        if counters.differing:
            told = ", ".join(f"{name}: {count} of {counters.turns} turns" for name, count in counters.differing.items())
            ElementTree.SubElement(case, "failure", message=told)
    for one in found.changes:
        case = ElementTree.SubElement(suite, "testcase", classname="speed", name=one.what)
        told = f"{one.ratio.estimate:.3f} [{one.ratio.low:.3f}, {one.ratio.high:.3f}]"
        if one.verdict != "pass":
            ElementTree.SubElement(case, "failure" if one.verdict == "fail" else "skipped", message=told)
    suite.set("tests", str(len(suite.findall("testcase"))))
    suite.set("failures", str(len(suite.findall("testcase/failure"))))
    suite.set("skipped", str(len(suite.findall("testcase/skipped"))))
    write_atomic(path, ElementTree.tostring(suite, encoding="unicode", xml_declaration=True))
