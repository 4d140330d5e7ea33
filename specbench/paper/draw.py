"""Published items as figures: solid bars are published, hollow ones next to them are measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

from specbench.paper.items import TASKS, Item
from specbench.paper.matching import METHODS
from specbench.records.trial import BASELINE
from specbench.report.canvas import add_legend, create_canvas, mark_baseline
from specbench.report.palette import INK, Look, Style, assign_looks, strip_variant
from specbench.report.points import name_points

OUTLINES = {"full": "-", "none": (0, (2, 1)), "left": ":"}  # of measured bars, by the fill of their marker
OURS = {name: strip_variant(preset) for preset, name in METHODS.items()}  # published methods and their names in a run
WIDEST = 11.0  # inches


def choose_style(rows: pd.DataFrame) -> Style:
    """Return one look per method, the same in every item and in every report of a run."""
    methods = [BASELINE, *sorted(set(rows["method"]) - {BASELINE})]
    looks = assign_looks({OURS.get(method, method): method for method in methods})
    return {method: looks[OURS.get(method, method)] for method in methods}


def list_groups(item: Item, rows: pd.DataFrame) -> list[object]:
    """Return the values of the column that an item goes across, in their order."""
    values = list(rows[item.across].dropna().unique())
    if item.across == "task":
        return [task for task in TASKS if task in values]
    return sorted(values, key=lambda value: (isinstance(value, str), len(str(value)), value))


def plot_bars(item: Item, published: pd.DataFrame, measured: pd.DataFrame, style: Style) -> Figure:
    """Plot one group of bars per value of the item's column: a bar per method and kind, published and measured."""
    published = published[published["method"] != BASELINE]
    groups = list_groups(item, pd.concat([published, measured]))
    methods = [method for method in style if method in set(published["method"]) | set(measured["method"])]
    kinds = {"published": published, "measured": measured}
    columns = [(method, kind) for method in methods for kind, rows in kinds.items() if method in set(rows["method"])]
    needed = max(9.0, 1.3 * len(groups) + 1, 0.16 * len(columns) * len(groups) + 2)
    figure, axes = create_canvas(min(WIDEST, needed), 4.6)
    width = 0.84 / max(1, len(columns))
    for place, (method, kind) in enumerate(columns):
        rows = kinds[kind][kinds[kind]["method"] == method]
        heights = _average_by_group(rows, item.across, "speedup", groups)
        x = np.arange(len(groups)) + (place + 0.5) * width - 0.42
        bars = _plot_bar(axes, x, heights, width, style[method], kind)
        for bar, group, height in zip(bars, groups, heights, strict=True):
            name_points(bar, method, [f"{kind}, {_format_group(group)}: {height:.2f}".replace("\n", " ")])
        if kind == "published" and "sd" in rows:
            spread = _average_by_group(rows, item.across, "sd", groups)
            axes.errorbar(x, heights, yerr=spread, fmt="none", ecolor=INK, elinewidth=0.9, capsize=1.5)
    mark_baseline(axes, zorder=3)
    axes.set_xticks(range(len(groups)), [_format_group(group) for group in groups])
    axes.set(xlim=(-0.5, len(groups) - 0.5), ylabel=f"speedup over {BASELINE}", title=item.title)
    add_legend(figure, axes)
    return figure


def _average_by_group(rows: pd.DataFrame, across: str, column: str, groups: Sequence[object]) -> list[float]:
    means = rows.groupby(across)[column].mean()
    return [float(value) for value in means.reindex(pd.Index(groups)).to_numpy(dtype=float)]


def _plot_bar(axes: Axes, x: np.ndarray, heights: Sequence[float], width: float, look: Look, kind: str) -> BarContainer:
    label = look.label if kind == "published" else f"{look.label}, measured"
    pale = 1.0 if look.fill == "full" else 0.45
    options: dict[str, Any] = {"edgecolor": look.colour, "facecolor": (look.colour, pale), "linewidth": 0.8}
    if kind == "measured":  # no hatches: Chromium takes minutes to print hundreds of SVG patterns
        options |= {"facecolor": "none", "linewidth": 1.4, "linestyle": OUTLINES[look.fill]}
    return axes.bar(x, heights, 0.86 * width, label=label, **options)


def _format_group(group: object) -> str:
    return f"{group:g}" if isinstance(group, float) else str(group).replace("_", "\n")


def plot_over_days(wide: pd.DataFrame, device: str, target: str, style: Style) -> Figure:
    """Plot the published overall speedups of one target on one device, by day of publication."""
    rows = wide.xs((device, target), level=("device", "target"))
    figure, axes = create_canvas(9, 4.4)
    days = pd.to_datetime(wide.columns)
    for method in (name for name in style if name in rows.index):
        values, look = rows.loc[method].to_numpy(dtype=float), style[method]
        known = ~np.isnan(values)
        (line,) = axes.plot(days[known], values[known], label=look.label, ls=look.line, **look.marks)
        numbers = zip(days[known], values[known], strict=True)
        name_points(line, method, (f"{day.date()}: {value:.2f}" for day, value in numbers))
    mark_baseline(axes)
    axes.set(ylabel=f"speedup over {BASELINE}", title=f"Published overall speedups, {device}, {target}, by day")
    figure.autofmt_xdate()
    add_legend(figure, axes)
    return figure
