"""The page of a run that is not finished yet: its tables and its own figure, without pictures, and how far it is."""

from __future__ import annotations

from pathlib import Path

from specbench.analysis.loaded_run import LoadedRun, order_methods, pick_trial, read_run
from specbench.analysis.summary import summarise
from specbench.errors import InputError
from specbench.report import palette, tables
from specbench.report.alarms import find_alarms
from specbench.report.forest import build_panels
from specbench.report.page import Progress, Section, render_page, render_waiting


def is_finished(path: Path) -> bool:
    """Whether the run's summary was written after its last trial."""
    summary, trials = path / "summary.csv", path / "trials.jsonl"
    return summary.is_file() and trials.is_file() and summary.stat().st_mtime_ns >= trials.stat().st_mtime_ns


def render_live(path: Path, seconds: int) -> str:
    """Return the HTML text of what a run has measured so far. Until the run is over, it loads itself again every `seconds`."""
    finished = is_finished(path)
    try:
        run = read_run(path)
    except InputError as error:
        return render_waiting(str(error), seconds)
    summary = summarise(run)
    style = palette.assign_looks({method: tables.format_label(pick_trial([run], method)) for method in order_methods([run])})
    looks = {method: style[method] for method in summary["method"].unique()}
    section = Section(run, summary, find_alarms(run, summary), [], looks=looks, panels=build_panels(summary, style))
    return render_page([section], progress=Progress(_describe_progress(run, finished), None if finished else seconds))


def _describe_progress(run: LoadedRun, finished: bool) -> str:
    done, missing = len(run.trials), sum(run.missing.values())
    if finished:
        return f"The run is finished: {done} turns."
    return f"The run is going on: {done} of {done + missing} turns are measured. All numbers here are of those alone."
