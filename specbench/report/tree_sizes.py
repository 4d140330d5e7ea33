"""Dynamic draft trees of several sizes in one run: speedup by tree size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from specbench.analysis.loaded_run import LoadedRun
from specbench.records.trial import BASELINE, OVERALL
from specbench.report.canvas import add_legend, create_canvas, mark_baseline
from specbench.report.palette import MARKERS, PALETTE
from specbench.report.points import format_limits, name_points

LEAST = 3  # sizes of a method that make a figure


def tabulate_tree_sizes(run: LoadedRun, summary: pd.DataFrame) -> pd.DataFrame:
    """Return the overall rows of methods whose class runs at several tree sizes, with series, total_tokens and depth."""
    settings = run.config.get("method") or {}
    sized = {label: one for label, one in settings.items() if one and _has_size(one)}
    classes = Counter(one["_target_"] for one in sized.values())
    chosen = [label for label, one in sized.items() if classes[one["_target_"]] >= LEAST]
    rows = summary[(summary["task"] == OVERALL) & summary["method"].isin(chosen)].dropna(subset=["speedup"])
    rows = rows.assign(
        total_tokens=rows["method"].map(lambda label: sized[label]["total_tokens"]),
        depth=rows["method"].map(lambda label: sized[label]["depth"]),
        series=rows["method"].map(lambda label: f"{sized[label]['_target_'].rsplit('.', 1)[-1]}, depth {sized[label]['depth']}"),
    )
    return rows.sort_values(["depth", "total_tokens"])


def _has_size(settings: Mapping[str, Any]) -> bool:
    return type(settings.get("_target_")) is str and all(type(settings.get(name)) is int for name in ("total_tokens", "depth"))


def plot_tree_sizes(sizes: pd.DataFrame) -> Figure:
    """Plot overall speedup against the number of tree nodes, one line per class and depth. sizes: see tabulate_tree_sizes."""
    figure, axes = create_canvas(7.5, 4.8)
    for position, (series, rows) in enumerate(sizes.groupby("series", sort=False)):
        colour, marker = PALETTE[position % len(PALETTE)], MARKERS[position % len(MARKERS)]
        shifted = rows["total_tokens"] * (1 + 0.015 * position)  # intervals of equal sizes side by side
        axes.vlines(shifted, rows["speedup_low"], rows["speedup_high"], color=colour, linewidth=1.4, alpha=0.6)
        (line,) = axes.plot(shifted, rows["speedup"], marker=marker, color=colour, markersize=6, linewidth=1.6, label=str(series))
        name_points(
            line, "", (f"{row['method']}, {row['total_tokens']} nodes: {format_limits(row)}" for _, row in rows.iterrows())
        )
    mark_baseline(axes)
    axes.set_xscale("log", base=2)
    ticks = sorted(set(sizes["total_tokens"]))
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set(
        xlabel="nodes of the draft tree, root included",
        ylabel=f"speedup over {BASELINE}",
        title="Speedup by tree size, all tasks",
    )
    add_legend(figure, axes)
    return figure


def describe_best_size(sizes: pd.DataFrame) -> str:
    """Return the caption, which names the fastest size, or says that none is faster than autoregressive decoding."""
    row = sizes.sort_values("speedup").iloc[-1]
    start = "The fastest here" if row["speedup"] >= 1 else f"None is faster than {BASELINE} decoding; the nearest"
    size = f"{row['total_tokens']} nodes and depth {row['depth']}"
    return f"Speedup by tree size. {start}: {row['method']}, {size}, {format_limits(row)}."
