"""Output of a comparison: the table, notes and Markdown for people, JSON and JUnit files for machines."""

from __future__ import annotations

from dataclasses import asdict
from math import isnan
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from rich.table import Table

from specbench.compare.baseline import CONFIRMS, RATE
from specbench.compare.comparison import Comparison
from specbench.compare.gate import FAILS_BELOW, LEVEL, PASSES_ABOVE, Change
from specbench.compare.runs import LATEST
from specbench.errors import abbreviate
from specbench.records.files import write_atomic
from specbench.records.markdown import format_markdown_table

WORDS = {"fail": "FAILED", "undecided": "undecided", "pass": "passed"}


def build_comparison_table(comparison: Comparison) -> Table:
    """Return the table for the terminal."""
    table = Table("ratio", "new / reference", "interval", "verdict")
    for change in comparison.judged:
        style = {"fail": "bold red", "undecided": "yellow"}.get(change.verdict, "")
        table.add_row(*_format_cells(change), style=style)
    return table


def format_notes(comparison: Comparison) -> list[str]:
    """Return the notes below the table, worst first."""
    lines = [
        f"{row.method}: {count} of {row.turns} turns have a different {name}"
        for row in comparison.counted
        for name, count in row.differing.items()
    ]
    undecided = [change for change in comparison.judged if change.verdict == "undecided"]
    lines += [f"{change.what}: undecided; {_format_needed(change)}" for change in undecided]
    if comparison.baseline is not None and comparison.baseline.confirmed:
        lines.append(f"{RATE} fell while the methods of the same run, which share its drift, kept their own: it runs slower code")
    if comparison.changes and not comparison.copy:
        lines.append(f"intervals: {LEVEL:.0%} for all ratios together")
    return [*lines, *comparison.remarks]


def _format_needed(change: Change) -> str:
    if change.needed is None:
        no_interval = isnan(change.ratio.low)
        return "one question per task gives no interval" if no_interval else "too close to a limit for one run to decide"
    if change.needed.runs > LATEST:
        return f"over {LATEST} runs of each side would decide; compare --against GIT-REF times both versions in one run"
    runs = f"{change.needed.runs} runs of each side" if change.needed.runs > 1 else ""
    if change.needed.questions <= change.questions and runs:
        return f"{runs} would decide"
    return f"{' and '.join(filter(None, [f'{change.needed.questions} questions', runs]))} would decide, {change.questions} now"


def format_title(comparison: Comparison) -> str:
    """Return the names of both runs and the result; what is undecided, by name."""
    if comparison.reference is None:
        return f"{comparison.new}: first reference, compared with nothing"
    title = f"{comparison.new} against {comparison.reference}: {WORDS[comparison.verdict]}"
    open_ = [change.what for change in comparison.judged if change.verdict == "undecided"]
    if comparison.verdict == "undecided":
        return f"{title} ({abbreviate(open_)})"
    return f"{title}, a copy of it" if comparison.copy else title


def _format_cells(change: Change) -> tuple[str, str, str, str]:
    interval = "none" if isnan(change.ratio.low) else _format_interval(change)
    return change.what, f"{change.ratio.estimate:.3f}", interval, change.verdict


def _format_interval(change: Change) -> str:
    return f"[{change.ratio.low:.3f}, {change.ratio.high:.3f}]"


def format_comparison(comparison: Comparison) -> str:
    """Return the comparison in Markdown, for the summary of a CI job."""
    title = f"### {format_title(comparison)}\n"
    if comparison.reference is None:
        return title
    header = ("ratio", "new / reference", "interval", "verdict")
    table = format_markdown_table(header, [_format_cells(change) for change in comparison.judged])
    notes = [line for line in (comparison.power, *format_notes(comparison)) if line]
    return "\n".join([title, *table, "", *(f"- {line}" for line in notes), "", _describe_criterion(comparison)]) + "\n"


def _describe_criterion(comparison: Comparison) -> str:
    rule = f"Fails if the whole interval is below {FAILS_BELOW}, passes if its lower limit exceeds {PASSES_ABOVE}."
    if comparison.baseline is None:
        return rule
    rarely = f"equal processes look as slow in less than {CONFIRMS:.0%} of cases"
    return f"{rule} {RATE.capitalize()} also fails if it fell over the methods, too, and {rarely}."


def build_document(comparison: Comparison) -> dict[str, Any]:
    """Return the comparison for programs."""
    plain = {**asdict(comparison), "verdict": comparison.verdict, "failed": comparison.verdict == "fail"}
    plain["changes"] = [_list_figures(change) for change in comparison.changes]
    plain["baseline"] = _list_figures(comparison.baseline) if comparison.baseline else None
    return plain


def _list_figures(change: Change) -> dict[str, Any]:
    return {**asdict(change), "verdict": change.verdict}


def write_junit(comparison: Comparison, path: Path) -> None:
    """Write one test per change and one per method for its counters; undecided ones and a first reference are skipped."""
    cases = _list_cases(comparison)
    outcomes = [outcome for _, _, outcome, _ in cases]
    counts = {"tests": len(cases), "failures": outcomes.count("failure"), "skipped": outcomes.count("skipped")}
    attributes = {name: str(count) for name, count in counts.items()}
    suite = ElementTree.Element("testsuite", {"name": "specbench compare", **attributes})
    for class_, name, outcome, message in cases:
        case = ElementTree.SubElement(suite, "testcase", classname=class_, name=name)
        if outcome:
            ElementTree.SubElement(case, outcome, message=message)
    write_atomic(path, ElementTree.tostring(suite, encoding="unicode", xml_declaration=True))


def _list_cases(comparison: Comparison) -> list[tuple[str, str, str, str]]:
    """Return class name, name, outcome (failure, skipped or empty) and message of each test."""
    cases: list[tuple[str, str, str, str]] = []
    if comparison.reference is None:
        cases.append(("reference", comparison.new, "skipped", format_title(comparison)))
    for row in comparison.counted:
        message = ", ".join(f"{name}: {count} of {row.turns} turns" for name, count in row.differing.items())
        cases.append(("counters", row.method, "failure" if message else "", message))
    for change in comparison.judged:
        outcome = {"pass": "", "fail": "failure", "undecided": "skipped"}[change.verdict]
        message = f"{WORDS[change.verdict]}: {change.ratio.estimate:.3f} {_format_interval(change)}"
        cases.append(("speed", change.what, outcome, message))
    return cases
