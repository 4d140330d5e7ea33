"""Boxes over questions: how long a token takes, and how long answers are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from specbench.records.trial import BASELINE
from specbench.report.canvas import fold_label, measure_breadth, measure_crowding
from specbench.report.palette import GREY, INK, Style
from specbench.report.points import name_points, repeat_name


def plot_questions(latencies: pd.DataFrame, style: Style) -> Figure:
    """Plot boxes over questions: milliseconds per token by method (left), tokens per answer by task (right).

    latencies: see metrics.compute_question_latencies.
    """
    methods = [method for method in style if method in set(latencies["method"])]
    tasks = list(latencies["task"].unique())
    labels = {
        "method": [fold_label(style[name].label) for name in methods],
        "task": [fold_label(name.replace("_", " ")) for name in tasks],
    }
    all_labels = [*labels["method"], *labels["task"]]
    height = 1.6 + (0.34 + measure_crowding(all_labels)) * max(len(methods), len(tasks))
    figure = Figure(figsize=(8 + measure_breadth(all_labels), height), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for axes, column, key, names in ((left, "ms_per_token", "method", methods), (right, "new_tokens", "task", tasks)):
        rows = latencies if key == "method" else latencies[latencies["method"] == BASELINE]
        values = {name: rows.loc[rows[key] == name, column].dropna().to_numpy(float) for name in names}
        _plot_boxes(axes, values, labels[key], style)
        axes.set_ylim(-max(len(methods), len(tasks)) - 0.5, -0.5)  # boxes of one height
    left.set_title("Milliseconds per token, over questions")
    right.set_title("Tokens per question")
    return figure


def _plot_boxes(axes: Axes, values: Mapping[str, np.ndarray], labels: Sequence[str], style: Style) -> None:
    """values: by method or task, the first on top."""
    options: dict[str, Any] = {"patch_artist": True, "flierprops": {"markersize": 3, "markeredgecolor": INK}}
    places = [-1 - place for place in range(len(values))]
    boxes = axes.boxplot(
        [*values.values()], positions=places, widths=0.6, orientation="horizontal", tick_labels=labels, **options
    )
    for place, (name, numbers) in enumerate(values.items()):
        box, colour = boxes["boxes"][place], style[name].colour if name in style else GREY
        box.set(facecolor=colour, alpha=0.55, edgecolor=INK)
        lines = [boxes["medians"][place], *boxes["whiskers"][2 * place :][:2], *boxes["caps"][2 * place :][:2]]
        for line in lines:
            line.set_color(INK)
        name_points(box, name, [_describe_box(numbers)])
        repeat_name(box, [*lines, boxes["fliers"][place], axes.get_yticklabels()[place]])
    axes.set_xlim(left=0)
    axes.grid(axis="x")


def _describe_box(numbers: np.ndarray) -> str:
    low, middle, high = np.quantile(numbers, (0.25, 0.5, 0.75)) if len(numbers) else (math.nan,) * 3
    return f"median {middle:.1f}, quartiles {low:.1f} and {high:.1f}"
