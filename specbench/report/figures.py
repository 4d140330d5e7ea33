"""The figures of a run: speedup by task and prompt length, speedup against acceptance, by position, the time of a step."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from specbench.records.trial import BASELINE, OVERALL
from specbench.report.canvas import add_legend, create_canvas, fold_label, mark_baseline, measure_breadth, measure_crowding
from specbench.report.palette import GREY, INK, PALETTE, Look, Style
from specbench.report.points import format_limits, name_points, repeat_name
from specbench.report.tables import format_interval, format_rank, list_shown_tasks

CONVERSIONS = (1.0, 0.8, 0.6, 0.4)
LAST_POSITION = 16  # of longer chains acceptance.csv has the rest
TALLEST = 1.6  # times the fastest speedup: longer intervals are cut and end in an arrow
LEAST_REACHED = 30  # steps; a share of fewer is not drawn


def plot_task_speedups(summary: pd.DataFrame, style: Style) -> Figure:
    """Plot speedups with 95 % intervals, one group of points per task."""
    drafting = summary[summary["method"] != BASELINE].dropna(subset=["speedup"])
    methods, tasks = list(drafting["method"].unique()), list_shown_tasks(summary)
    figure, axes = create_canvas(10 + 0.3 * max(0, len(methods) - 8), 4.8)
    top = _compute_top(drafting)
    for position, method in enumerate(methods):
        rows = drafting[drafting["method"] == method].set_index("task").reindex(tasks)
        offset = (position + 0.5) / len(methods) - 0.5
        places = [index + 0.8 * offset for index in range(len(tasks))]
        _plot_points(axes, places, rows, (method, style[method]), top)
    for index in range(0, len(tasks), 2):
        axes.axvspan(index - 0.5, index + 0.5, color=INK, alpha=0.04, linewidth=0)
    mark_baseline(axes)
    axes.set_xticks(range(len(tasks)), [task.replace("_", "\n") for task in tasks])
    bottom = min(0.5, 0.9 * drafting["speedup_low"].min(), 0.9 * drafting["speedup"].min()) if len(drafting) else 0
    axes.set(xlim=(-0.5, len(tasks) - 0.5), ylim=(bottom, top), ylabel=f"speedup over {BASELINE}")
    axes.set_title("Speedup by task, 95 % intervals over questions")
    add_legend(figure, axes)
    return figure


def _compute_top(rows: pd.DataFrame) -> float:
    """Return the end of the axis: above all intervals, unless a very long one would press the points together."""
    if rows.empty:
        return 1.5
    highest = max(rows["speedup"].max(), rows["speedup_high"].fillna(0).max())
    return float(1.05 * max(1.0, min(highest, TALLEST * rows["speedup"].max())))


def _plot_points(axes: Axes, places: list[float], rows: pd.DataFrame, drawn: tuple[str, Look], top: float) -> None:
    """rows: by task or level. drawn: a method and its look."""
    method, look = drawn
    middle, low, high = (rows[name].to_numpy(float) for name in ("speedup", "speedup_low", "speedup_high"))
    name_points(axes.vlines(places, low, high, color=look.colour, linewidth=1.8, zorder=2), method)
    (line,) = axes.plot(places, middle, ls="", label=look.label, markersize=6, zorder=3, **look.marks)
    name_points(line, method, (f"{name}: {format_limits(row)}" for name, row in rows.iterrows()))
    cut = [place for place, limit in zip(places, high, strict=True) if limit > top]
    if cut:
        axes.plot(cut, [top] * len(cut), ls="", marker="^", color=look.colour, markersize=5, clip_on=False)


def plot_prompt_lengths(buckets: pd.DataFrame, style: Style) -> Figure:
    """Plot speedup and mean accepted tokens over the prompt's length. buckets: see strata.tabulate_strata; two or more."""
    levels = list(buckets["level"].unique())
    places = {level: math.log2(int(level.partition("–")[0])) for level in levels}  # a bucket without a question leaves a gap
    methods = list(buckets["method"].unique())
    first, last = min(places.values()) - 0.5, max(places.values()) + 0.5
    top = _compute_top(buckets.dropna(subset=["speedup"]))
    figure = Figure(figsize=(max(11, 1.2 * (last - first) + 1.5), 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for position, method in enumerate(methods):
        look, rows = style[method], buckets[buckets["method"] == method].set_index("level")
        shifted = [places[level] + 0.6 * ((position + 0.5) / len(methods) - 0.5) for level in rows.index]
        _plot_points(left, shifted, rows.rename("{} prompt tokens".format), (method, look), top)
        options: dict[str, Any] = {"ls": look.line, "linewidth": 1, "alpha": 0.6, "color": look.colour}
        accepted = rows["mean_accepted_tokens"]
        lines = left.plot(shifted, rows["speedup"], **options) + right.plot(shifted, accepted, **options)
        (points,) = right.plot(shifted, accepted, ls="", markersize=6, **look.marks)
        name_points(points, method, (f"{level} prompt tokens: {one:.2f}" for level, one in accepted.items()))
        repeat_name(points, lines)
    mark_baseline(left)
    left.set(title="Speedup, 95 % intervals over questions")
    left.set_ylim(min(0.5, 0.9 * buckets[["speedup_low", "speedup"]].min().min()), top)
    right.set(title="Mean accepted tokens")
    right.set_ylim(bottom=1)
    questions = buckets.groupby("level")["questions"].max()
    labels = [f"{level}\n({questions[level]})".replace("–", "–\n") for level in levels]
    for axes in (left, right):
        axes.set_xticks(list(places.values()), labels)
        axes.set_xlim(first, last)
        axes.set_xlabel("prompt tokens (questions)")
        axes.grid(axis="y")
    add_legend(figure, left)
    return figure


def plot_forest(summary: pd.DataFrame, style: Style) -> Figure:
    """Plot one row per method: overall speedup, interval and rank, its tasks as small points, its range without any one task."""
    overall = summary[(summary["task"] == OVERALL) & (summary["method"] != BASELINE)].dropna(subset=["speedup"])
    overall = overall.sort_values("speedup")
    labels = [fold_label(style[str(method)].label) for method in overall["method"]]
    figure, axes = create_canvas(8 + measure_breadth(labels), 1.6 + (0.38 + measure_crowding(labels)) * len(overall), grid="x")
    for place, (_, row) in enumerate(overall.iterrows()):
        look = style[str(row["method"])]
        tasks = summary.loc[(summary["method"] == row["method"]) & (summary["task"] != OVERALL), "speedup"].dropna()
        axes.plot(tasks, [place] * len(tasks), ls="", marker="o", color=look.colour, markersize=4, alpha=0.45)
        if len(tasks) > 2:
            without = [math.exp(np.log(tasks.drop(index)).mean()) for index in tasks.index]
            axes.hlines(place, min(without), max(without), color=look.colour, linewidth=6, alpha=0.25)
        axes.hlines(place, row["speedup_low"], row["speedup_high"], color=look.colour, linewidth=2)
        axes.plot(row["speedup"], place, markersize=8, zorder=3, **look.marks)
        text = format_interval(row) + f", rank {format_rank(row)}" * pd.notna(row["rank_best"])
        axes.annotate(text, (1.01, place), xycoords=("axes fraction", "data"), va="center", size=9.5)
    axes.axvline(1, color=GREY, linewidth=1.4, zorder=1)
    axes.set_yticks(range(len(overall)), labels)
    axes.set(xlabel=f"speedup over {BASELINE}", title="Overall, and how much it owes to single tasks")
    return figure


def plot_conversion(summary: pd.DataFrame, style: Style) -> Figure:
    """Plot speedup against mean accepted tokens, with the lines speedup = conversion × mean accepted tokens.

    Overall is the geometric mean of the tasks on both axes, so that the lines apply to it too.
    """
    rows = summary[summary["method"] != BASELINE].dropna(subset=["speedup", "mean_accepted_tokens"])
    figure, axes = create_canvas(9.5, 5.6)
    right = max(2.0, 1.06 * rows["mean_accepted_tokens"].max()) if len(rows) else 2.0
    top = max(1.5, 1.12 * rows["speedup"].max()) if len(rows) else 1.5
    for conversion in CONVERSIONS:
        _plot_conversion_line(axes, conversion, right, top)
    for method, cells in rows.groupby("method", sort=False):
        look = style[str(method)]
        options: dict[str, Any] = {"ls": "", "zorder": 3, **look.marks}
        tasks = cells[cells["task"] != OVERALL]
        (small,) = axes.plot(tasks["mean_accepted_tokens"], tasks["speedup"], **options, markersize=5.5, alpha=0.5)
        overall = cells[cells["task"] == OVERALL]
        places = [math.exp(np.log(tasks["mean_accepted_tokens"]).mean())] * len(overall)
        (large,) = axes.plot(places, overall["speedup"], **options, markersize=10)
        for points, part, accepted in ((small, tasks, tasks["mean_accepted_tokens"]), (large, overall, places)):
            numbers = zip(part["task"], part["speedup"], accepted, strict=True)
            values = [f"{task}: speedup {one:.2f}, {tokens:.2f} tokens" for task, one, tokens in numbers]
            name_points(points, str(method), values, part["task"])
        repeat_name(large, axes.plot([], [], **options, label=look.label))
    axes.plot(1, 1, ls="", marker="o", color=GREY, markersize=8, label=BASELINE, zorder=3)
    bottom = min(0.5, 0.9 * rows["speedup"].min()) if len(rows) else 0.5
    axes.set(xlim=(1 - 0.05 * (right - 1), right), ylim=(bottom, top))
    axes.set(xlabel="mean accepted tokens", ylabel=f"speedup over {BASELINE}")
    axes.set_title("How much of the acceptance becomes time (large: overall, small: tasks)", pad=18)
    add_legend(figure, axes)
    return figure


def _plot_conversion_line(axes: Axes, conversion: float, right: float, top: float) -> None:
    axes.plot([0, right], [0, conversion * right], color=INK, alpha=0.35, linewidth=1, zorder=1)
    options: dict[str, Any]  # the label is outside the axes, at the right edge or at the top
    if conversion * right < top:
        options = {"xy": (right, conversion * right), "xytext": (4, 0), "ha": "left", "va": "center"}
    else:
        options = {"xy": (top / conversion, top), "xytext": (0, 3), "ha": "center", "va": "bottom"}
    axes.annotate(f"×{conversion:.1f}", textcoords="offset points", annotation_clip=False, size=9, alpha=0.75, **options)


def plot_step_time(split: pd.DataFrame, style: Style) -> Figure:
    """Plot the cost of a step in autoregressive steps, by part, and the tokens it yields. split: see metrics.split_step_time."""
    rows = split[split["method"] != BASELINE].iloc[::-1]
    names = [fold_label(style[method].label) for method in rows["method"]]
    figure, axes = create_canvas(6.5 + measure_breadth(names), 1.8 + (0.42 + measure_crowding(names)) * len(rows), grid="x")
    left = np.zeros(len(rows))
    for part, colour in zip(("draft", "verify", "rest"), PALETTE, strict=False):
        width = rows[part].to_numpy(float)
        bars = axes.barh(names, width, left=left, color=colour, height=0.62, label=part)
        for bar, method, steps in zip(bars, rows["method"], width, strict=True):
            name_points(bar, method, [f"{part}: {steps:.2f} steps of {BASELINE}"])
        left += width
    for place, (method, tokens) in enumerate(zip(rows["method"], rows["mean_accepted_tokens"], strict=True)):
        label = "tokens that it yields" if place == 0 else "_"
        (diamond,) = axes.plot([tokens], [names[place]], ls="", marker="D", color=INK, markersize=6, label=label)
        name_points(diamond, method, [f"{tokens:.2f} tokens per step"])
    axes.axvline(1, color=GREY, linewidth=1.4, zorder=1, label=f"a step of {BASELINE} = 1")
    axes.set(xlabel=f"steps of {BASELINE}; tokens", title="Where a step's time goes, and what it yields")
    axes.set_xlim(left=0)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    add_legend(figure, axes)
    return figure


def plot_acceptance(positions: pd.DataFrame, style: Style) -> Figure:
    """Plot the share of steps that accept the k-th draft token: of all steps, and given that all before it were accepted."""
    least = min(LEAST_REACHED, positions["reached"].max())  # in a tiny run no position reaches LEAST_REACHED
    rows = positions[(positions["reached"] >= least) & (positions["position"] <= LAST_POSITION)]
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    joint, conditional = figure.subplots(1, 2, sharex=True, sharey=True)
    for method in (name for name in style if name in set(rows["method"])):
        cells, look = rows[rows["method"] == method], style[method]
        for axes, share in ((joint, "joint"), (conditional, "conditional")):
            options: dict[str, Any] = {"ls": look.line, "label": look.label, "markersize": 5, **look.marks}
            (line,) = axes.plot(cells["position"], cells[share], linewidth=1.6, clip_on=False, **options)
            numbers = zip(cells["position"], cells[share], strict=True)
            name_points(line, method, (f"draft position {k}: {one:.2f}" for k, one in numbers))
    joint.set_title("Joint: accepted at least k draft tokens")
    joint.set_ylabel("share of steps")
    conditional.set_title("Conditional: the k-th, if all before it were")
    for axes in (joint, conditional):
        _label_acceptance_axes(axes, int(rows["position"].max()) if len(rows) else 1)
    add_legend(figure, joint)
    return figure


def _label_acceptance_axes(axes: Axes, last: int) -> None:
    axes.set(ylim=(0, 1), xlim=(0.7, last + 0.3))
    axes.set_xticks(range(1, last + 1, 1 if last <= 10 else 2))
    axes.set_xlabel("draft position k")
    axes.tick_params(labelleft=True)
    axes.grid(axis="y")


def plot_setting_speedups(summary: pd.DataFrame, setting: str, style: Style) -> Figure:
    """Plot overall speedup and mean accepted tokens of several runs over the setting in which they differ."""
    rows = summary[(summary["task"] == OVERALL) & (summary["method"] != BASELINE)].dropna(subset=["speedup"])
    values = sorted(rows[setting].unique())
    numbers = all(isinstance(value, (int, float)) for value in values)
    places = {value: float(value) if numbers else float(index) for index, value in enumerate(values)}
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    methods = list(rows["method"].unique())
    step = (max(places.values()) - min(places.values()) or 1) / max(1, len(values) - 1)
    for position, method in enumerate(methods):
        look = style[str(method)]
        cells = rows[rows["method"] == method].sort_values(setting, key=lambda column: column.map(places))
        x = cells[setting].map(places) + (0.12 if numbers else 0.5) * step * ((position + 0.5) / len(methods) - 0.5)
        line = look.line if numbers else "none"  # no line between names
        bars = left.vlines(x, cells["speedup_low"], cells["speedup_high"], color=look.colour, linewidth=1.4)
        (speedups,) = left.plot(x, cells["speedup"], label=look.label, ls=line, **look.marks)
        (accepted,) = right.plot(x, cells["mean_accepted_tokens"], ls=line, **look.marks)
        named = [(f"{setting} {row[setting]}", row) for _, row in cells.iterrows()]
        name_points(speedups, str(method), (f"{name}: {format_limits(row)}" for name, row in named))
        name_points(accepted, str(method), (f"{name}: {row['mean_accepted_tokens']:.2f} tokens per step" for name, row in named))
        repeat_name(speedups, [bars])
    mark_baseline(left)
    left.set_title("Speedup, 95 % intervals over questions")
    right.set_title("Mean accepted tokens")
    for axes in (left, right):
        axes.set_xticks(list(places.values()), [f"{value:g}" if numbers else str(value) for value in places])
        axes.set_xlabel(setting)
        axes.set_ylim(bottom=0)
        axes.grid(axis="y")
    add_legend(figure, left)
    return figure
