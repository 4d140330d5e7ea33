"""What is said of all runs together: over the one setting in which they differ, and of servers under load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import pandas as pd
from matplotlib.figure import Figure

from specbench.analysis.loaded_run import LoadedRun
from specbench.analysis.summary import format_csv
from specbench.analysis.windows import is_loaded
from specbench.report import batches, figures, load
from specbench.report.palette import Style
from specbench.report.tables import format_words

SWEPT = ("temperature", "dtype", "shape", "target", "device", "ends", "template", batches.SETTING, load.SETTING)  # columns


@dataclass(frozen=True)
class Comparison:
    """setting: in which the runs differ; None: in none, or in several. files: by name; words: a table of the page."""

    setting: str | None
    figure: Figure | None = None
    caption: str = ""
    words: pd.DataFrame | None = None
    files: Mapping[str, str] = field(default_factory=dict)


def compare_runs(runs: Sequence[LoadedRun], summary: pd.DataFrame, style: Style) -> Comparison:
    swept = find_swept(summary)
    if any(is_loaded(run.trials) for run in runs):
        return _compare_loads(runs, summary, swept, style)
    if swept is None:
        return Comparison(None)
    if swept == batches.SETTING:
        table = batches.tabulate_batches(runs, summary)
        files = {"batches.md": batches.format_batches(table), "batches.csv": format_csv(table)}
        words = batches.tabulate_break_even(table)
        return Comparison(swept, batches.plot_batches(summary, style), batches.describe_batches(table), words, files)
    return _compare_setting(swept, summary, style)


def _compare_setting(swept: str, summary: pd.DataFrame, style: Style) -> Comparison:
    caption = f"Overall speedup, and mean accepted tokens, over {swept}; every task weighs the same in the speedup."
    return Comparison(swept, figures.plot_setting_speedups(summary, swept, style), caption)


def _compare_loads(runs: Sequence[LoadedRun], summary: pd.DataFrame, swept: str | None, style: Style) -> Comparison:
    table = load.tabulate_runs(runs)
    words = load.tabulate_words(table)
    files = {"load.md": format_words(words), "load.csv": format_csv(table)}
    if swept is None:
        return Comparison(None, words=words, files=files)
    if swept != load.SETTING:
        return replace(_compare_setting(swept, summary, style), words=words, files=files)
    return Comparison(swept, load.plot_load(table, style), load.describe_load(table), words, files)


def find_swept(summary: pd.DataFrame) -> str | None:
    """Return the one setting in which the runs differ, each with another value; None if there is none."""
    swept = [setting for setting in SWEPT if summary.groupby("run")[setting].first().nunique() > 1]
    alone = len(swept) == 1 and summary["run"].nunique() == summary[swept[0]].nunique()
    return swept[0] if alone else None
