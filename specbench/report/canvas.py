"""Axes, legends and labels that all figures share, and figures as SVG text and as files.

Everything is drawn in one ink colour that the HTML page replaces with its own text colour. SVG backgrounds are transparent.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, cast

import matplotlib
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

from specbench.records.files import write_atomic
from specbench.records.trial import BASELINE
from specbench.report.palette import GREY, INK, list_colours
from specbench.report.points import describe_figure, finish_svg, repeat_name

DPI = 200
COLOUR = re.compile(r"#([0-9a-f]{6})\b")
LONGEST_LABEL = 28  # characters per line of a label beside an axis


def use_figure_settings() -> AbstractContextManager[None]:
    """Return the context in which figures are drawn and saved; ids inside an SVG are the same every time."""
    settings: dict[str, Any] = {
        "font.size": 11, "font.family": "sans-serif", "text.parse_math": False, "svg.fonttype": "none",
        "svg.hashsalt": "specbench", "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK,
        "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False,
        "axes.titlesize": 12, "axes.titlelocation": "left", "axes.titleweight": "bold",
        "figure.facecolor": "none", "axes.facecolor": "none", "legend.fontsize": 10,
        "axes.linewidth": 0.8, "legend.frameon": False,
        "grid.color": INK, "grid.alpha": 0.12, "grid.linewidth": 0.8,
    }  # fmt: skip
    return matplotlib.rc_context(cast(Any, settings))  # its keys are literals


def create_canvas(width: float, height: float, grid: Literal["x", "y"] = "y") -> tuple[Figure, Axes]:
    """Return one pair of axes with grid lines across one axis; sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.grid(axis=grid)
    axes.set_axisbelow(True)
    return figure, axes


def mark_baseline(axes: Axes, zorder: float = 1) -> None:
    """Draw a line at speedup 1, where autoregressive decoding is."""
    axes.axhline(1, color=GREY, linewidth=1.4, zorder=zorder, label=f"{BASELINE} = 1")


def measure_breadth(labels: Sequence[str]) -> float:
    """Return the width of the longest line at eleven points, in inches."""
    return 0.095 * max((len(line) for label in labels for line in label.split("\n")), default=0)


def measure_crowding(labels: Sequence[str]) -> float:
    """Return the extra height that a row needs for folded labels, in inches."""
    return 0.12 * max((label.count("\n") for label in labels), default=0)


def fold_label(label: str) -> str:
    """Break a long label into lines, after underscores and spaces."""
    lines = [""]
    for part in re.findall(r"[^_ ]+[_ ]?|[_ ]", label):
        if lines[-1] and len(lines[-1] + part) > LONGEST_LABEL:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.rstrip() for line in lines)


def add_legend(figure: Figure, axes: Axes) -> None:
    """Add the legend below the figure, which grows by it, in as many columns as fit side by side."""
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
    legend = figure.legend(handles, labels, loc="outside lower center", ncols=math.ceil(len(handles) / rows), **spacing)
    for handle, *entry in zip(handles, legend.legend_handles, legend.get_texts(), strict=True):
        repeat_name(handle, filter(None, entry))


def render_svg(figure: Figure) -> str:
    """Return the figure as SVG text, transparent, without a date; see points.finish_svg."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return finish_svg(buffer.getvalue(), describe_figure(figure))


def inline_svg(text: str) -> str:
    """Return SVG to put into an HTML page: its width in points as --width, ink in the text colour, other colours as variables.

    The variables of page.css are called like their colours on a white page: --0072b2 is #0072b2 there.
    """
    opening, rest = text.replace(INK, "currentColor").replace("xlink:href", "href").split(">", 1)
    sized = re.sub(r' width="([\d.]+)pt"', r' style="--width: \1"', opening)
    coloured = COLOUR.sub(lambda found: f"var(--{found[1]})" if found[0] in list_colours() else found[0], rest)
    return re.sub(r' height="[^"]*"', "", sized) + ">" + coloured


def save_figure(figure: Figure, stem: Path) -> list[Path]:
    """Write stem.png (white background), stem.svg and stem.pdf (both transparent)."""
    png, pdf = io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png", dpi=DPI, facecolor="white")
    figure.savefig(pdf, format="pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})
    contents: dict[str, str | bytes] = {".png": png.getvalue(), ".svg": render_svg(figure), ".pdf": pdf.getvalue()}
    for suffix, content in contents.items():
        write_atomic(stem.with_name(stem.name + suffix), content)
    return [stem.with_name(stem.name + suffix) for suffix in contents]
