"""The figures of a run: speedup by task and by tree size, speedup against acceptance, acceptance by position, a step's time.

Drawn with one ink colour that the HTML page replaces by the reader's own text colour; SVG backgrounds are
transparent.
"""

from __future__ import annotations

import io
import math
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

from specbench.analysis.loaded_run import LoadedRun
from specbench.analysis.metrics import OVERALL
from specbench.records.files import write_atomic
from specbench.records.trial import BASELINE
from specbench.report.palette import GREY, INK, MARKERS, PALETTE, Look, Style
from specbench.report.tables import format_interval, format_rank, list_shown_tasks

CONVERSIONS = (1.0, 0.8, 0.6, 0.4)
LAST_POSITION = 16  # long chains go on; acceptance.csv has them all
DPI = 200
TALLEST = 1.6  # times the fastest: intervals above are cut, with an arrow
LONGEST_LABEL = 28  # characters of a line beside an axis
LEAST_REACHED = 30  # a share of fewer steps than this is not drawn


def use_figure_settings() -> AbstractContextManager[None]:
    """The settings under which figures are made and saved; ids inside an SVG are the same every time."""
    settings: dict[str, Any] = {
        "font.size": 11, "font.family": "sans-serif", "text.parse_math": False, "svg.fonttype": "none",
        "svg.hashsalt": "specbench", "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK,
        "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False,
        "axes.titlesize": 12, "axes.titlelocation": "left", "axes.titleweight": "bold",
        "figure.facecolor": "none", "axes.facecolor": "none", "legend.fontsize": 10,
        "axes.linewidth": 0.8, "legend.frameon": False,
    }  # fmt: skip
    return matplotlib.rc_context(cast(Any, settings))  # its keys are literals


def plot_task_speedups(summary: pd.DataFrame, style: Style) -> Figure:
    """Points with 95 % intervals, one group a task, and a line where autoregressive decoding is."""
    drafting = summary[summary["method"] != BASELINE].dropna(subset=["speedup"])
    methods, tasks = list(drafting["method"].unique()), list_shown_tasks(summary)
    figure, axes = create_canvas(10 + 0.3 * max(0, len(methods) - 8), 4.8)
    top = _compute_top(drafting)
    for position, method in enumerate(methods):
        rows = drafting[drafting["method"] == method].set_index("task").reindex(tasks)
        offset = (position + 0.5) / len(methods) - 0.5
        places = [index + 0.8 * offset for index in range(len(tasks))]
        _plot_points(axes, places, rows, style[method], top)
    for index in range(0, len(tasks), 2):
        axes.axvspan(index - 0.5, index + 0.5, color=INK, alpha=0.04, linewidth=0)
    axes.axhline(1, color=GREY, linewidth=1.4, zorder=1, label=f"{BASELINE} = 1")
    axes.set_xticks(range(len(tasks)), [task.replace("_", "\n") for task in tasks])
    axes.set_xlim(-0.5, len(tasks) - 0.5)
    axes.set_ylim(min(0.5, 0.9 * drafting["speedup_low"].min(), 0.9 * drafting["speedup"].min()) if len(drafting) else 0, top)
    axes.set_ylabel(f"speedup over {BASELINE}")
    axes.set_title("Speedup by task, 95 % intervals over questions")
    add_legend(figure, axes)
    return figure


def _compute_top(rows: pd.DataFrame) -> float:
    """Where the axis ends: above all intervals, unless those of few questions would press the points together."""
    if rows.empty:
        return 1.5
    return 1.05 * max(1.0, min(rows[["speedup", "speedup_high"]].max(axis=None), TALLEST * rows["speedup"].max()))


def _plot_points(axes: Axes, places: list[float], rows: pd.DataFrame, look: Look, top: float) -> None:
    middle, low, high = (rows[name].to_numpy(float) for name in ("speedup", "speedup_low", "speedup_high"))
    axes.vlines(places, low, high, color=look.colour, linewidth=1.8, zorder=2)
    drawn: dict[str, Any] = {"marker": look.marker, "color": look.colour, "fillstyle": look.fill, "markersize": 6, "zorder": 3}
    axes.plot(places, middle, ls="", label=look.label, **drawn)
    cut = [place for place, limit in zip(places, high, strict=True) if limit > top]
    if cut:
        axes.plot(cut, [top] * len(cut), ls="", marker="^", color=look.colour, markersize=5, clip_on=False)


def plot_forest(summary: pd.DataFrame, style: Style) -> Figure:
    """A row a method, the fastest on top: overall, its interval and rank; tasks as small points; the range without any one."""
    overall = summary[(summary["task"] == OVERALL) & (summary["method"] != BASELINE)].dropna(subset=["speedup"])
    overall = overall.sort_values("speedup")
    labels = [fold_label(style[str(method)].label) for method in overall["method"]]
    figure, axes = create_canvas(8 + measure_breadth(labels), 1.6 + (0.38 + measure_crowding(labels)) * len(overall))
    for place, (_, row) in enumerate(overall.iterrows()):
        look = style[str(row["method"])]
        tasks = summary.loc[(summary["method"] == row["method"]) & (summary["task"] != OVERALL), "speedup"].dropna()
        axes.plot(tasks, [place] * len(tasks), ls="", marker="o", color=look.colour, markersize=4, alpha=0.45)
        if len(tasks) > 2:
            without = [math.exp(np.log(tasks.drop(index)).mean()) for index in tasks.index]
            axes.hlines(place, min(without), max(without), color=look.colour, linewidth=6, alpha=0.25)
        axes.hlines(place, row["speedup_low"], row["speedup_high"], color=look.colour, linewidth=2)
        axes.plot(row["speedup"], place, marker="D", color=look.colour, fillstyle=look.fill, markersize=7, zorder=3)
        text = format_interval(row) + f", rank {format_rank(row)}" * pd.notna(row["rank_best"])
        axes.annotate(text, (1.01, place), xycoords=("axes fraction", "data"), va="center", size=9.5)
    axes.axvline(1, color=GREY, linewidth=1.4, zorder=1)
    axes.set_yticks(range(len(overall)), labels)
    axes.set_xlabel(f"speedup over {BASELINE}")
    axes.set_title("Overall, and how much it owes to single tasks")
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=INK, alpha=0.12, linewidth=0.8)
    return figure


def plot_questions(latencies: pd.DataFrame, style: Style) -> Figure:
    """Boxes over questions: milliseconds per token by method (left), tokens of an answer by task (right).

    latencies: method, task, question_id, ms_per_token, new_tokens (see metrics.question_latencies).
    """
    methods = [method for method in style if method in set(latencies["method"])]
    tasks = list(latencies["task"].unique())
    labels = {
        "method": [fold_label(style[name].label) for name in methods],
        "task": [fold_label(name.replace("_", " ")) for name in tasks],
    }
    every = [*labels["method"], *labels["task"]]
    tall = 1.6 + (0.34 + measure_crowding(every)) * max(len(methods), len(tasks))
    figure = Figure(figsize=(8 + measure_breadth(every), tall), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for axes, column, key, names in ((left, "ms_per_token", "method", methods), (right, "new_tokens", "task", tasks)):
        rows = latencies if key == "method" else latencies[latencies["method"] == BASELINE]
        values = [rows.loc[rows[key] == name, column].dropna().to_numpy(float) for name in names][::-1]
        colours = [style[name].colour if key == "method" else GREY for name in names][::-1]
        outside = {"markersize": 3, "markeredgecolor": INK}
        drawn: dict[str, Any] = {"patch_artist": True, "widths": 0.6, "flierprops": outside}
        boxes = axes.boxplot(values, orientation="horizontal", tick_labels=labels[key][::-1], **drawn)
        for box, colour in zip(boxes["boxes"], colours, strict=True):
            box.set(facecolor=colour, alpha=0.55, edgecolor=INK)
        for part in ("medians", "whiskers", "caps"):
            for line in boxes[part]:
                line.set_color(INK)
        axes.set_xlim(left=0)
        axes.grid(axis="x", color=INK, alpha=0.12, linewidth=0.8)
    left.set_title("Milliseconds per token, over questions")
    right.set_title("Tokens a question")
    return figure


def plot_conversion(summary: pd.DataFrame, style: Style) -> Figure:
    """Every method on every task, with the lines speedup = conversion × mean accepted tokens.

    Overall is the geometric mean of the tasks in both directions: one weighting, or the lines would not fit it.
    """
    rows = summary[summary["method"] != BASELINE].dropna(subset=["speedup", "mean_accepted_tokens"])
    figure, axes = create_canvas(9.5, 5.6)
    right = max(2.0, 1.06 * rows["mean_accepted_tokens"].max()) if len(rows) else 2.0
    top = max(1.5, 1.12 * rows["speedup"].max()) if len(rows) else 1.5
    for conversion in CONVERSIONS:
        _plot_conversion_line(axes, conversion, right, top)
    for method, cells in rows.groupby("method", sort=False):
        look = style[str(method)]
        drawn: dict[str, Any] = {"ls": "", "marker": look.marker, "color": look.colour, "fillstyle": look.fill, "zorder": 3}
        tasks = cells[cells["task"] != OVERALL]
        axes.plot(tasks["mean_accepted_tokens"], tasks["speedup"], **drawn, markersize=5.5, alpha=0.5)
        overall = cells.loc[cells["task"] == OVERALL, "speedup"]
        places = [math.exp(np.log(tasks["mean_accepted_tokens"]).mean())] * len(overall)
        axes.plot(places, overall, **drawn, markersize=10)
        axes.plot([], [], **drawn, label=look.label)
    axes.plot(1, 1, ls="", marker="o", color=GREY, markersize=8, label=BASELINE, zorder=3)
    axes.set_xlim(1 - 0.05 * (right - 1), right)
    axes.set_ylim(min(0.5, 0.9 * rows["speedup"].min()) if len(rows) else 0.5, top)
    axes.set_xlabel("mean accepted tokens")
    axes.set_ylabel(f"speedup over {BASELINE}")
    axes.set_title("How much of the acceptance becomes time (large: overall, small: tasks)", pad=18)
    add_legend(figure, axes)
    return figure


def _plot_conversion_line(axes: Axes, conversion: float, right: float, top: float) -> None:
    axes.plot([0, right], [0, conversion * right], color=INK, alpha=0.35, linewidth=1, zorder=1)
    leaves = conversion * right < top  # at the right edge, else at the top: labels stand outside, clear of the points
    place = (right, conversion * right) if leaves else (top / conversion, top)
    offset, sides = ((4, 0), ("left", "center")) if leaves else ((0, 3), ("center", "bottom"))
    drawn: dict[str, Any] = {"ha": sides[0], "va": sides[1], "size": 9, "alpha": 0.75}
    axes.annotate(f"×{conversion:.1f}", place, offset, textcoords="offset points", annotation_clip=False, **drawn)


def plot_tree_sizes(sizes: pd.DataFrame) -> Figure:
    """Speedup over all tasks against the nodes of the tree, a line for each depth. sizes: see trees.tree_sizes."""
    figure, axes = create_canvas(7.5, 4.8)
    for position, (series, rows) in enumerate(sizes.groupby("series", sort=False)):
        colour, marker = PALETTE[position % len(PALETTE)], MARKERS[position % len(MARKERS)]
        apart = rows["total_tokens"] * (1 + 0.015 * position)  # intervals of equal sizes side by side
        axes.vlines(apart, rows["speedup_low"], rows["speedup_high"], color=colour, linewidth=1.4, alpha=0.6)
        axes.plot(apart, rows["speedup"], marker=marker, color=colour, markersize=6, linewidth=1.6, label=str(series))
    axes.axhline(1, color=GREY, linewidth=1.4, zorder=1, label=f"{BASELINE} = 1")
    axes.set_xscale("log", base=2)
    ticks = sorted(set(sizes["total_tokens"]))
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("nodes of the draft tree, root included")
    axes.set_ylabel(f"speedup over {BASELINE}")
    axes.set_title("Speedup by tree size, all tasks")
    add_legend(figure, axes)
    return figure


def plot_step_time(split: pd.DataFrame, style: Style) -> Figure:
    """Bars: what a step costs in autoregressive steps, by part; a diamond: the tokens it yields (metrics.time_split)."""
    rows = split[split["method"] != BASELINE].iloc[::-1]
    names = [fold_label(style[method].label) for method in rows["method"]]
    figure, axes = create_canvas(6.5 + measure_breadth(names), 1.8 + (0.42 + measure_crowding(names)) * len(rows))
    left = np.zeros(len(rows))
    for part, colour in zip(("draft", "verify", "rest"), PALETTE, strict=False):
        width = rows[part].to_numpy(float)
        axes.barh(names, width, left=left, color=colour, height=0.62, label=part)
        left += width
    axes.plot(rows["mean_accepted_tokens"], names, ls="", marker="D", color=INK, markersize=6, label="tokens it yields")
    axes.axvline(1, color=GREY, linewidth=1.4, zorder=1, label=f"a step of {BASELINE} = 1")
    axes.set_xlim(left=0)
    axes.set_xlabel(f"steps of {BASELINE}; tokens")
    axes.set_title("Where a step's time goes, and what it yields")
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=INK, alpha=0.12, linewidth=0.8)
    add_legend(figure, axes)
    return figure


def plot_acceptance(positions: pd.DataFrame, style: Style) -> Figure:
    """Two panels: the k-th draft token is accepted; it is, given that all before it were (conditional)."""
    least = min(LEAST_REACHED, positions["reached"].max())  # a tiny run draws what it has
    rows = positions[(positions["reached"] >= least) & (positions["position"] <= LAST_POSITION)]
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    joint, conditional = figure.subplots(1, 2, sharex=True, sharey=True)
    for method in (name for name in style if name in set(rows["method"])):
        cells, look = rows[rows["method"] == method], style[method]
        for axes, share in ((joint, "joint"), (conditional, "conditional")):
            drawn: dict[str, Any] = {
                "color": look.colour,
                "marker": look.marker,
                "fillstyle": look.fill,
                "ls": look.line,
                "label": look.label,
            }
            axes.plot(cells["position"], cells[share], **drawn, markersize=5, linewidth=1.6, clip_on=False)
    joint.set_title("Joint: accepted at least k draft tokens")
    joint.set_ylabel("share of steps")
    conditional.set_title("Conditional: the k-th, if all before it were")
    for axes in (joint, conditional):
        _label_acceptance_axes(axes, int(rows["position"].max()) if len(rows) else 1)
    add_legend(figure, joint)
    return figure


def _label_acceptance_axes(axes: Axes, last: int) -> None:
    axes.set_ylim(0, 1)
    axes.set_xlim(0.7, last + 0.3)
    axes.set_xticks(range(1, last + 1, 1 if last <= 10 else 2))
    axes.set_xlabel("draft position k")
    axes.tick_params(labelleft=True)
    axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.8)


def plot_setting_speedups(summary: pd.DataFrame, setting: str, style: Style) -> Figure:
    """Several runs: overall speedup with 95 % intervals, and mean accepted tokens, over the setting that tells them apart."""
    rows = summary[(summary["task"] == OVERALL) & (summary["method"] != BASELINE)].dropna(subset=["speedup"])
    values = sorted(rows[setting].unique())
    numbers = all(isinstance(value, (int, float)) for value in values)
    places = {value: float(value) if numbers else float(at) for at, value in enumerate(values)}
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    methods = list(rows["method"].unique())
    step = (max(places.values()) - min(places.values()) or 1) / max(1, len(values) - 1)
    for position, method in enumerate(methods):
        look = style[str(method)]
        own = rows[rows["method"] == method].sort_values(setting, key=lambda column: column.map(places))
        at = own[setting].map(places) + (0.12 if numbers else 0.5) * step * ((position + 0.5) / len(methods) - 0.5)
        line = look.line if numbers else "none"  # nothing lies between two names
        drawn: dict[str, Any] = {"color": look.colour, "marker": look.marker, "fillstyle": look.fill, "ls": line}
        left.vlines(at, own["speedup_low"], own["speedup_high"], color=look.colour, linewidth=1.4)
        left.plot(at, own["speedup"], label=look.label, **drawn)
        right.plot(at, own["mean_accepted_tokens"], **drawn)
    left.axhline(1, color=GREY, linewidth=1.4, zorder=1, label=f"{BASELINE} = 1")
    left.set_title("Speedup, 95 % intervals over questions")
    right.set_title("Mean accepted tokens")
    for axes in (left, right):
        axes.set_xticks(list(places.values()), [f"{value:g}" if numbers else str(value) for value in places])
        axes.set_xlabel(setting)
        axes.set_ylim(bottom=0)
        axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.8)
    add_legend(figure, left)
    return figure


def create_canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """One pair of axes with lines across; inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def measure_breadth(labels: Sequence[str]) -> float:
    """Inches that the longest line of them takes at eleven points."""
    return 0.095 * max((len(line) for label in labels for line in label.split("\n")), default=0)


def measure_crowding(labels: Sequence[str]) -> float:
    """Inches that a row needs more where labels are folded."""
    return 0.12 * max((label.count("\n") for label in labels), default=0)


def fold_label(label: str) -> str:
    """A long label in lines, broken behind underscores and spaces."""
    lines = [""]
    for part in re.findall(r"[^_ ]+[_ ]?|[_ ]", label):
        lines = [*lines[:-1], lines[-1] + part] if len(lines[-1] + part) <= LONGEST_LABEL or not lines[-1] else [*lines, part]
    return "\n".join(line.rstrip() for line in lines)


def add_legend(figure: Figure, axes: Axes) -> None:
    """Below the figure, which grows by it, in as many columns as fit side by side."""
    entries = sorted(
        zip(*axes.get_legend_handles_labels(), strict=True), key=lambda entry: not isinstance(entry[0], BarContainer)
    )
    if not entries:
        return
    handles, labels = zip(*entries, strict=True)
    width, height = figure.get_size_inches()
    rows = math.ceil(len(handles) / max(1, int(width / (0.55 + 0.91 * measure_breadth(labels)))))
    figure.set_size_inches(width, height + 0.21 * (rows - 1))
    spacing = {"handletextpad": 0.4, "columnspacing": 1.4}
    figure.legend(handles, labels, loc="outside lower center", ncols=math.ceil(len(handles) / rows), **spacing)


def render_svg(figure: Figure) -> str:
    """The figure as SVG text, transparent, without a date."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def inline_svg(text: str) -> str:
    """SVG for inside an HTML page: no prologue or metadata, its width in points as --width, ink in the page's text colour."""
    body = text[text.index("<svg") :].replace(INK, "currentColor")
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    opening, rest = body.split(">", 1)
    sized = re.sub(r' width="([\d.]+)pt"', r' style="--width: \1"', opening)
    return re.sub(r' height="[^"]*"', "", sized) + ">" + rest


def save_figure(figure: Figure, stem: Path) -> list[Path]:
    """Writes stem.png (white background), stem.svg and stem.pdf (both transparent)."""
    picture, printed = io.BytesIO(), io.BytesIO()
    figure.savefig(picture, format="png", dpi=DPI, facecolor="white")
    figure.savefig(printed, format="pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})
    raster, vector, page = (stem.with_name(stem.name + ending) for ending in (".png", ".svg", ".pdf"))
    write_atomic(raster, picture.getvalue())
    write_atomic(vector, render_svg(figure))
    write_atomic(page, printed.getvalue())
    return [raster, vector, page]


LEAST = 3  # sizes of a method that make a figure


def tabulate_tree_sizes(run: LoadedRun, summary: pd.DataFrame) -> pd.DataFrame:
    """A row per method of a dynamic tree, where a class has several: series, total_tokens, depth, and its overall speedup."""
    settings = run.config.get("method") or {}
    sized = {label: one for label, one in settings.items() if isinstance(one, dict) and {"total_tokens", "depth"} <= set(one)}
    classes = Counter(one["_target_"] for one in sized.values())
    chosen = [label for label, one in sized.items() if classes[one["_target_"]] >= LEAST]
    rows = summary[(summary["task"] == OVERALL) & summary["method"].isin(chosen)].dropna(subset=["speedup"])
    made = rows.assign(
        total_tokens=rows["method"].map(lambda label: sized[label]["total_tokens"]),
        depth=rows["method"].map(lambda label: sized[label]["depth"]),
        series=rows["method"].map(lambda label: f"{sized[label]['_target_'].rsplit('.', 1)[-1]}, depth {sized[label]['depth']}"),
    )
    return made.sort_values(["depth", "total_tokens"])


def describe_best_size(sizes: pd.DataFrame) -> str:
    """The fastest of them in words."""
    row = sizes.sort_values("speedup").iloc[-1]
    interval = f"[{row['speedup_low']:.2f}, {row['speedup_high']:.2f}]"
    return (
        f"Speedup by tree size. The fastest here: {row['method']}, {row['total_tokens']} nodes and depth {row['depth']}, "
        f"{row['speedup']:.2f} {interval}."
    )
