"""Runs with different batches: at which batch each method stops paying off, and whether it accepts the same drafts there."""

from __future__ import annotations

from collections.abc import Sequence
from math import log2, nan
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from specbench.analysis.loaded_run import LoadedRun
from specbench.records.trial import BASELINE, OVERALL, Trial
from specbench.report.canvas import add_legend, mark_baseline
from specbench.report.palette import Style
from specbench.report.points import format_limits, name_points, repeat_name
from specbench.report.tables import format_words

SETTING = "batch"
COLUMNS = [
    "method", "pays_up_to", "costs_from", "break_even", "batch", "speedup", "speedup_low", "speedup_high", "tokens_per_second",
    "mean_accepted_tokens", "equal_turns", "turns",
]  # fmt: skip


class BreakEven(NamedTuple):
    """pays_up_to: the last batch up to which every interval is above 1; costs_from: the first whose interval is below 1.

    break_even: where the line between two batches crosses 1, the batch on a logarithmic scale. nan: at no batch that was run.
    """

    pays_up_to: float
    costs_from: float
    break_even: float


def tabulate_batches(runs: Sequence[LoadedRun], summary: pd.DataFrame) -> pd.DataFrame:
    """Return a row per method and batch. equal_turns: those that accepted and drafted as in the run of the smallest batch."""
    rows = summary[(summary["task"] == OVERALL) & (summary["method"] != BASELINE)].dropna(subset=["speedup"])
    rows = rows.sort_values(SETTING).sort_values("method", kind="stable", key=lambda names: names.map(_rank_methods(summary)))
    found = {method: find_break_even(cells) for method, cells in rows.groupby("method")}
    counts = _compare_counts(runs)
    pairs = list(zip(rows["method"], rows[SETTING], strict=True))
    return rows.assign(
        **{name: [getattr(found[method], name) for method, _ in pairs] for name in BreakEven._fields},
        equal_turns=[counts.get(pair, (0, 0))[0] for pair in pairs],
        turns=[counts.get(pair, (0, 0))[1] for pair in pairs],
    )[COLUMNS]


def _rank_methods(summary: pd.DataFrame) -> dict[Any, int]:
    """Return each method's place in the summary."""
    return {method: place for place, method in enumerate(dict.fromkeys(summary["method"]))}


def find_break_even(cells: pd.DataFrame) -> BreakEven:
    """cells: a method's overall rows, one per batch, ascending."""
    batches, speedups = cells[SETTING].tolist(), cells["speedup"].tolist()
    pays = nan
    for batch, low in zip(batches, cells["speedup_low"], strict=True):
        if not low > 1:
            break
        pays = batch
    costs = next((batch for batch, high in zip(batches, cells["speedup_high"], strict=True) if high < 1), nan)
    return BreakEven(pays, costs, _interpolate(batches, speedups))


def _interpolate(batches: Sequence[float], speedups: Sequence[float]) -> float:
    """Return where the speedup first falls below 1."""
    points = list(zip(batches, speedups, strict=True))
    for (batch, above), (further, below) in zip(points, points[1:], strict=False):
        if above >= 1 > below:
            share = (above - 1) / (above - below)
            return float(2 ** (log2(batch) + share * (log2(further) - log2(batch))))
    return nan


def _compare_counts(runs: Sequence[LoadedRun]) -> dict[tuple[str, int], tuple[int, int]]:
    """Return, by method and batch, how many turns have the counts of the smallest batch, and of how many both runs have one."""
    by_batch = {int(run.config.get(SETTING) or 1): _list_counts(run.trials) for run in runs}
    first = by_batch[min(by_batch)]
    compared: dict[tuple[str, int], tuple[int, int]] = {}
    for batch, counts in by_batch.items():
        for method in {method for method, *_ in counts}:
            own = {key: steps for key, steps in counts.items() if key[0] == method and key in first}
            compared[method, batch] = sum(first[key] == steps for key, steps in own.items()), len(own)
    return compared


def _list_counts(trials: Sequence[Trial]) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    """Return what each turn drafted and accepted, step by step."""
    return {
        (trial.method, trial.question_id, trial.turn, trial.repeat): (tuple(trial.drafted or ()), tuple(trial.accepted or ()))
        for trial in trials
        if trial.error is None
    }


def format_batches(table: pd.DataFrame) -> str:
    """Return `tabulate_break_even` as Markdown."""
    return format_words(tabulate_break_even(table))


def tabulate_break_even(table: pd.DataFrame) -> pd.DataFrame:
    """Return, as words, speedups by batch and where each method stops paying. table: of `tabulate_batches`."""
    lines = []
    for method, rows in table.groupby("method", sort=False):
        speedups = {f"B = {row[SETTING]}": _format_speedup(row) for _, row in rows.iterrows()}
        pays = rows["pays_up_to"].iloc[0]
        ends = {"pays up to": "–" if pd.isna(pays) else str(int(pays)), "break-even": describe_break_even(rows)}
        lines.append({"method": method, **speedups, **ends})
    return pd.DataFrame(lines).fillna("")


def _format_speedup(row: pd.Series) -> str:
    interval = "" if pd.isna(row["speedup_low"]) else f" [{row['speedup_low']:.2f}, {row['speedup_high']:.2f}]"
    return f"{row['speedup']:.2f}{interval}"


def describe_break_even(rows: pd.DataFrame) -> str:
    """Return the batch at which a method's speedup falls below 1, in words if it is outside the range that was run."""
    one, batches = rows.iloc[0], rows[SETTING]
    if not pd.isna(one["break_even"]):
        return f"{one['break_even']:.1f}"
    if (rows["speedup"] < 1).all():
        return f"below {batches.min()}"
    return f"above {batches.max()}"


def plot_batches(summary: pd.DataFrame, style: Style) -> Figure:
    """Plot overall speedup and tokens per second of every method over the batch."""
    rows = summary[summary["task"] == OVERALL]
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    methods = list(dict.fromkeys(rows["method"]))
    for position, method in enumerate(methods):
        look, cells = style[str(method)], rows[rows["method"] == method].sort_values(SETTING)
        shifted = cells[SETTING] * (1 + 0.03 * (position - len(methods) / 2))  # intervals side by side
        if method != BASELINE:
            bars = left.vlines(shifted, cells["speedup_low"], cells["speedup_high"], color=look.colour, linewidth=1.4)
            (speedups,) = left.plot(shifted, cells["speedup"], label=look.label, ls=look.line, **look.marks)
            values = (f"batch {row[SETTING]}: {format_limits(row)}" for _, row in cells.iterrows())
            name_points(speedups, str(method), values)
            repeat_name(speedups, [bars])
        (rates,) = right.plot(cells[SETTING], cells["tokens_per_second"], ls=look.line, **look.marks)
        numbers = zip(cells[SETTING], cells["tokens_per_second"], strict=True)
        name_points(rates, str(method), (f"batch {batch}: {rate:.1f} tokens/s" for batch, rate in numbers))
    mark_baseline(left)
    left.set_title(f"Speedup over {BASELINE} at the same batch")
    left.set_ylim(bottom=0)
    right.set_title("Tokens per second of the whole batch")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        _mark_batches(axes, sorted(rows[SETTING].unique()))
    add_legend(figure, left)
    return figure


def _mark_batches(axes: Axes, batches: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("batch: sequences decoded side by side")
    axes.grid(axis="y")


def describe_batches(table: pd.DataFrame) -> str:
    """Return the caption of the figure: where each method stops paying, and whether the drafts were the same."""
    ends = "; ".join(f"{method} {describe_break_even(rows)}" for method, rows in table.groupby("method", sort=False))
    others = table[table[SETTING] > table[SETTING].min()]
    equal, turns = int(others["equal_turns"].sum()), int(others["turns"].sum())
    return (
        f"Speedup by batch, with 95 % intervals over groups of questions, and throughput. Break-even batch: {ends}."
        f" {equal} of {turns} turns drafted and accepted step by step as at the smallest batch."
    )
