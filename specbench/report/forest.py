"""The page's own figure: on every task, and overall, a line per method with its speedup, its interval and its tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from specbench.records.trial import BASELINE, OVERALL
from specbench.report.palette import Look, Style
from specbench.report.points import format_limits
from specbench.report.tables import format_rank, list_shown_tasks

TALLEST = 1.6  # times the fastest speedup: longer intervals are cut and end in an arrow
TICKS = MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10])

Row: TypeAlias = Mapping[Any, Any]
Cells: TypeAlias = Mapping[str, Mapping[str, Row]]  # by method and task


class Dot(NamedTuple):
    """A task of a method. place: percent of the axis."""

    task: str
    place: float
    value: str


class Bar(NamedTuple):
    """A method in a panel. place, low, high, band: percent of the axis; band: the range without any one task."""

    method: str
    look: Look
    place: float
    low: float
    high: float
    cut: bool
    band: tuple[float, float] | None
    dots: Sequence[Dot]
    number: str
    value: str


class Panel(NamedTuple):
    """The methods on one task or overall, the fastest overall on top. ticks: (percent of the axis, number)."""

    task: str
    one: float
    ticks: Sequence[tuple[float, str]]
    bars: Sequence[Bar]


class Scale(NamedTuple):
    """The axis that all panels of a run have in common."""

    low: float
    high: float

    def place(self, speedup: float) -> float:
        """Return the percent of the axis, at most 100."""
        return round(100 * (min(speedup, self.high) - self.low) / (self.high - self.low), 1)


def build_panels(summary: pd.DataFrame, style: Style) -> list[Panel]:
    """Return the panel of all tasks together, if there are several, and one per task; none without a speedup."""
    rows = summary[summary["method"] != BASELINE].dropna(subset=["speedup"])
    if rows.empty:
        return []
    scale = _choose_scale(rows)
    order = rows[rows["task"] == OVERALL].sort_values("speedup", ascending=False)["method"]
    cells = {method: {row["task"]: row for row in rows[rows["method"] == method].to_dict("records")} for method in order}
    tasks = sorted(list_shown_tasks(summary), key=lambda task: task != OVERALL)
    return [_build_panel(task, cells, style, scale) for task in tasks]


def _build_panel(task: str, cells: Cells, style: Style, scale: Scale) -> Panel:
    ticks = [(scale.place(tick), f"{tick:g}") for tick in TICKS.tick_values(*scale) if scale.low <= tick <= scale.high]
    bars = [_build_bar(rows, task, style[method], scale) for method, rows in cells.items() if task in rows]
    return Panel(task, scale.place(1), ticks, bars)


def _choose_scale(rows: pd.DataFrame) -> Scale:
    """Return an axis with 1 and all speedups, and all limits unless a very long one would press the others together."""
    fastest = rows["speedup"].max()
    high = max(1.0, min(max(fastest, rows["speedup_high"].max()), TALLEST * fastest))
    low = min(1.0, rows["speedup"].min(), np.nanmin([1.0, rows["speedup_low"].min()]))
    margin = 0.04 * (high - low) or 0.1
    return Scale(low - margin, high + margin)


def _build_bar(rows: Mapping[str, Row], task: str, look: Look, scale: Scale) -> Bar:
    """rows: of one method, by task."""
    row = rows[task]
    low, high = (row["speedup"] if math.isnan(row[name]) else row[name] for name in ("speedup_low", "speedup_high"))
    others = [one for name, one in rows.items() if name != OVERALL] if task == OVERALL else []
    rank = f", rank {format_rank(row)}" * (task == OVERALL and not math.isnan(row["rank_best"]))
    return Bar(
        method=str(row["method"]),
        look=look,
        place=scale.place(row["speedup"]),
        low=scale.place(low),
        high=scale.place(high),
        cut=high > scale.high,
        band=_find_band([one["speedup"] for one in others], scale),
        dots=[Dot(str(one["task"]), scale.place(one["speedup"]), _describe_value(one)) for one in others],
        number=format_limits(row),
        value=_describe_value(row) + rank,
    )


def _describe_value(row: Row) -> str:
    return f"{str(row['task']).replace('_', ' ')}: {format_limits(row)}"


def _find_band(speedups: Sequence[float], scale: Scale) -> tuple[float, float] | None:
    """Return where the geometric mean of the tasks may lie without any one of them."""
    if len(speedups) < 3:
        return None
    logs = np.log(speedups)
    without = [math.exp((logs.sum() - one) / (len(logs) - 1)) for one in logs]
    return scale.place(min(without)), scale.place(max(without))
