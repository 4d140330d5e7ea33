"""Runs of servers under different loads: throughput and latencies by the number of requests at a time."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from specbench.analysis.load import tabulate_load
from specbench.analysis.loaded_run import LoadedRun
from specbench.records.trial import BASELINE
from specbench.report.alarm import Alarm
from specbench.report.canvas import add_legend, mark_baseline
from specbench.report.palette import Style
from specbench.report.points import format_limits, name_points, repeat_name
from specbench.report.tables import format_number

SETTING = "concurrency"
HEADER = [
    "method", "requests at a time", "requests", "tokens/s", "over autoregressive", "first token, s: p50", "p90", "p99",
    "per token, ms: p50", "p90", "p99", "good answers", "good per s",
]  # fmt: skip


def tabulate_runs(runs: Sequence[LoadedRun]) -> pd.DataFrame:
    """Return `tabulate_load` of all runs, by method and load."""
    tables = [tabulate_load(run).assign(run=run.name) for run in runs]
    methods = list(dict.fromkeys(name for table in tables for name in table["method"]))
    joined = pd.concat(tables, ignore_index=True).sort_values(SETTING)
    return joined.sort_values("method", kind="stable", key=lambda names: names.map(methods.index)).reset_index(drop=True)


def tabulate_words(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of `tabulate_runs` as words."""
    return pd.DataFrame([_format_row(row) for _, row in table.iterrows()], columns=HEADER)


def _format_row(row: pd.Series) -> list[str]:
    return [
        str(row["method"]),
        str(row[SETTING]),
        str(row["requests"]),
        format_number(row["tokens_per_second"], 1),
        "–" if row["method"] == BASELINE else _format_interval(row, "throughput_ratio"),
        *(_format_interval(row, f"first_token_s_{name}") for name in ("p50", "p90", "p99")),
        *(_format_interval(row, f"token_s_{name}", 1e3, 1) for name in ("p50", "p90", "p99")),
        "–" if pd.isna(row["good_share"]) else f"{row['good_share']:.0%}",
        format_number(row["good_requests_per_second"]),
    ]


def _format_interval(row: pd.Series, name: str, unit: float = 1.0, places: int = 2) -> str:
    value, low, high = (row[f"{name}{side}"] for side in ("", "_low", "_high"))
    limits = "" if pd.isna(low) else f" [{low * unit:.{places}f}, {high * unit:.{places}f}]"
    return format_number(value * unit, places) + limits


def plot_load(table: pd.DataFrame, style: Style) -> Figure:
    """Plot time per token over throughput, and throughput over autoregressive decoding's by load."""
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    methods = list(dict.fromkeys(table["method"]))
    for position, method in enumerate(methods):
        look, rows = style[str(method)], table[table["method"] == method].dropna(subset=["tokens_per_second"])
        (line,) = left.plot(rows["tokens_per_second"], 1e3 * rows["token_s_p50"], label=look.label, ls=look.line, **look.marks)
        named = [(f"{row[SETTING]} requests at a time", row) for _, row in rows.iterrows()]
        speeds = (f"{row['tokens_per_second']:.1f} tokens/s, {1e3 * row['token_s_p50']:.1f} ms per token" for _, row in named)
        name_points(line, str(method), (f"{name}: {speed}" for (name, _), speed in zip(named, speeds, strict=True)))
        for _, row in rows.iterrows():
            place = (row["tokens_per_second"], 1e3 * row["token_s_p50"])
            left.annotate(str(row[SETTING]), place, xytext=(4, 4), textcoords="offset points", fontsize=8)
        if method != BASELINE:
            shifted = rows[SETTING] * (1 + 0.03 * (position - len(methods) / 2))  # intervals side by side
            limits = (rows["throughput_ratio_low"], rows["throughput_ratio_high"])
            bars = right.vlines(shifted, *limits, color=look.colour, linewidth=1.4)
            (ratios,) = right.plot(shifted, rows["throughput_ratio"], ls=look.line, **look.marks)
            name_points(ratios, str(method), (f"{name}: {format_limits(row, 'throughput_ratio')}" for name, row in named))
            repeat_name(ratios, [bars])
    left.set_title("Time per token over throughput")
    left.set_xlabel("tokens per second of the server")
    left.set_ylabel("milliseconds per token, median")
    left.set_xlim(left=0)
    left.set_ylim(bottom=0)
    left.grid()
    _set_loads(right, sorted(table[SETTING].unique()))
    add_legend(figure, left)
    return figure


def _set_loads(axes: Axes, loads: Sequence[int]) -> None:
    mark_baseline(axes)
    axes.set_title(f"Throughput over {BASELINE} at the same load")
    axes.set_xscale("log", base=2)
    axes.set_xticks(loads, [str(load) for load in loads])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("requests at a time")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y")


def describe_load(table: pd.DataFrame) -> str:
    """Return the caption of the figure."""
    return (
        "Throughput and latencies between warm-up (until every client has had an answer) and drain (once a client finds no"
        f" question left), of {int(table['requests'].sum()):,} requests. Numbers at the points: requests at a time. Lines: 95 %"
        " intervals over passes."
    )


def warn_window(run: LoadedRun) -> list[Alarm]:
    """Warn of methods without a request between warm-up and drain."""
    table = tabulate_load(run) if any(trial.concurrency > 1 for trial in run.trials) else pd.DataFrame()
    empty = [str(row["method"]) for _, row in table.iterrows() if pd.isna(row["tokens_per_second"])]
    message = "no request is between warm-up and drain: use more questions than clients"
    return [Alarm("alarm", method, "overall", message) for method in empty]
