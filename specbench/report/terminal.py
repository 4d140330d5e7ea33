"""The headline of a run for a terminal of so many columns: a table of overall speeds, then one of the tasks.

A row is one line. No word and no number is broken: what does not fit is left out, or goes into another table.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from specbench.records.trial import BASELINE, OVERALL
from specbench.report.tables import (
    SummaryRow,
    describe_fastest,
    describe_rows,
    format_interval,
    format_label,
    format_number,
    format_rank,
    format_share,
    format_spread,
    format_verdict,
    list_shown_tasks,
    order_by_speed,
)

TITLE = "Speedup over autoregressive decoding, with its 95 % interval"
BY_TASK = "Speedup by task"
MARK = " (baseline)"
EXTRAS = (("rank", "verdict and texts"), ("rank", "lossless"), ("lossless",), ("rank",), ())  # the first that fits


@dataclass(frozen=True)
class Column:
    head: str
    cells: list[str]

    @property
    def lines(self) -> list[str]:
        """The head, broken between words where the column is narrower than it."""
        words = self.head.split()
        return textwrap.wrap(self.head, max(map(len, [*self.cells, *words])), break_long_words=False, break_on_hyphens=False)

    @property
    def width(self) -> int:
        return max(map(len, [*self.cells, *self.lines]), default=0)


def build_headline_tables(summary: pd.DataFrame, width: int, run: str = "") -> list[Table]:
    """Return one run's tables, the fastest method first. width: of the terminal, in columns; run: its name, for the title."""
    overall = order_by_speed(summary[summary["task"] == OVERALL])
    methods = Column("method", [format_label(row) + MARK * (row["method"] == BASELINE) for _, row in overall.iterrows()])
    title = f"{run}: " * bool(run) + TITLE
    notes = [*filter(None, [describe_fastest(summary)]), *describe_rows(summary)]
    main = _build_table(title, [methods, *_choose_columns(overall, width - methods.width)], width, notes)
    tasks = [task for task in list_shown_tasks(summary) if task != OVERALL]
    return [main, *_build_task_tables(summary, tasks, methods, overall, width)] if len(tasks) > 1 else [main]


def _choose_columns(overall: pd.DataFrame, room: int) -> list[Column]:
    """Return the columns that every width has, with as many others as there is room for."""
    rows = [row for _, row in overall.iterrows()]
    always = [
        Column("overall", [format_interval(row) for row in rows]),
        Column("mean accepted", [_format_accepted(row) for row in rows]),
        Column("tokens/s", [format_number(row["tokens_per_second"], 1) for row in rows]),
        Column("identical", [format_share(row["identical"]) for row in rows]),
    ]
    others = {
        "rank": Column("rank", [format_rank(row) for row in rows]),
        "lossless": Column("lossless", [str(row["lossless"]) for row in rows]),
        "verdict and texts": Column("lossless", [format_verdict(row) for row in rows]),
    }
    chosen = ([*always, *(others[name] for name in names)] for names in EXTRAS)
    return next((columns for columns in chosen if _measure(columns) <= room), always)


def _format_accepted(row: SummaryRow) -> str:
    return format_spread(row["mean_accepted_tokens"], row["mean_accepted_tokens_seed_sd"])


def _measure(columns: Sequence[Column]) -> int:
    return sum(1 + column.width for column in columns)


def _build_task_tables(
    summary: pd.DataFrame, tasks: list[str], methods: Column, overall: pd.DataFrame, width: int
) -> Iterator[Table]:
    """Yield the tables of speedups by task: with intervals if all tasks then fit side by side, else without."""
    rows = {(row["method"], row["task"]): row for _, row in summary.iterrows()}
    labels = list(overall["method"])

    def list_columns(intervals: bool) -> list[Column]:
        cells = {task: [rows.get((label, task)) for label in labels] for task in tasks}
        form = format_interval if intervals else lambda row: format_number(row["speedup"])
        return [Column(task.replace("_", " "), ["–" if row is None else form(row) for row in cells[task]]) for task in tasks]

    columns, room = list_columns(intervals=True), width - methods.width
    whole = _measure(columns) <= room
    for part in _split_columns(columns if whole else list_columns(intervals=False), room):
        note = [] if whole else ["Their 95 % intervals are in table.md and on the page."]
        yield _build_table(BY_TASK, [methods, *part], width, note)


def _split_columns(columns: list[Column], room: int) -> Iterator[list[Column]]:
    """Yield the columns in parts that fit, each of at least one."""
    part: list[Column] = []
    for column in columns:
        if part and _measure([*part, column]) > room:
            yield part
            part = []
        part.append(column)
    yield part


def _build_table(title: str, columns: Sequence[Column], width: int, notes: Sequence[str]) -> Table:
    """Return a table whose first column names methods: where nothing else helps, that one is folded."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    table.caption, table.caption_justify = "\n".join(notes) or None, "left"
    first, *others = columns
    table.add_column(Text(first.head), overflow="fold", max_width=max(12, width - _measure(others)))
    for column in others:
        left = column.head == "lossless"
        table.add_column(Text("\n".join(column.lines)), justify="left" if left else "right", no_wrap=True, min_width=column.width)
    for cells in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*map(Text, cells), style="bold" if cells[0].endswith(MARK) else "")
    return table
