"""The table of strata for the page, the terminal and Markdown: a row per level of a factor, a column per method."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from specbench.records.markdown import format_markdown_table
from specbench.report.tables import dim_below, format_number

NAME = 24  # columns of the terminal for a level and its questions
CELL = 11  # at least, for a method
TITLE = "Speedup and mean accepted tokens; below, the speedup's 95 % interval"
TOO_FEW = "A level of one question has no interval."


class Level(NamedTuple):
    """A row of the table. cells: by method; a method without a pair there has none."""

    factor: str
    level: str
    questions: int
    cells: dict[str, dict[Any, Any]]


def list_levels(strata: pd.DataFrame) -> list[Level]:
    """Return the rows of one run's table. strata: see analysis.strata.tabulate_strata."""
    return list(_iter_levels(strata))


def _iter_levels(strata: pd.DataFrame) -> Iterator[Level]:
    for (factor, level), rows in strata.groupby(["factor", "level"], sort=False):
        cells = {str(row["method"]): row for row in rows.to_dict("records")}
        yield Level(str(factor), str(level), int(rows["questions"].max()), cells)


def describe_few(strata: pd.DataFrame) -> list[str]:
    """Return the note below the table."""
    return [TOO_FEW] if (strata["speedup"].notna() & strata["speedup_low"].isna()).any() else []


def format_strata(strata: pd.DataFrame) -> str:
    """Return one run's table in GitHub's Markdown."""
    labels = dict(strata[["method", "label"]].itertuples(index=False, name=None))
    rows = [
        [level.factor, level.level, str(level.questions), *_format_cells(level, labels, _format_markdown_cell)]
        for level in list_levels(strata)
    ]
    lines = format_markdown_table(["factor", "level", "questions", *labels.values()], rows, 2)
    notes = ["Speedup over autoregressive decoding with the limits of its 95 % interval; mean accepted tokens."]
    return "\n".join(["\n".join(lines), *(f"\n{note}" for note in [*notes, *describe_few(strata)]), ""])


def _format_cells(level: Level, methods: Any, form: Callable[[dict[Any, Any]], str]) -> list[str]:
    return [form(level.cells[method]) if method in level.cells else "–" for method in methods]


def _format_markdown_cell(row: dict[Any, Any]) -> str:
    limits = "" if pd.isna(row["speedup_low"]) else f" [{row['speedup_low']:.2f}, {row['speedup_high']:.2f}]"
    return f"{format_number(row['speedup'])}{limits}; {format_number(row['mean_accepted_tokens'])}"


def _format_terminal_cell(row: dict[Any, Any]) -> str:
    limits = "" if pd.isna(row["speedup_low"]) else f"\n{_shorten(row['speedup_low'])}–{_shorten(row['speedup_high'])}"
    return f"{format_number(row['speedup'])} {format_number(row['mean_accepted_tokens']):>4}{limits}"


def _shorten(limit: float) -> str:
    """Return a limit in few characters: with two questions, it may be a thousand."""
    return f"{limit:.2f}" if limit < 100 else f"{limit:.0f}" if limit < 10_000 else f"{limit:.0e}"


def build_strata_tables(strata: pd.DataFrame, width: int) -> list[Table]:
    """Return one run's tables for a terminal of `width` columns; methods that do not fit into one table continue in the next."""
    labels = dict(strata[["method", "label"]].itertuples(index=False, name=None))
    heads = {method: _break_label(label) for method, label in labels.items()}
    cell = max([CELL - 1, *(len(line) for head in heads.values() for line in head.split("\n"))]) + 1
    fitting = max(1, (width - NAME) // cell)
    parts = [list(labels)[start : start + fitting] for start in range(0, len(labels), fitting)]
    tables = [_build_strata_table(strata, {method: heads[method] for method in part}, cell) for part in parts]
    tables[-1].caption, tables[-1].caption_justify = "\n".join(describe_few(strata)) or None, "left"
    return tables


def _break_label(label: str) -> str:
    """Return a label with its words below each other."""
    return "\n".join(textwrap.wrap(re.sub("(_+)", r"\1 ", label), CELL - 1, break_long_words=False)).replace("_ ", "_")


def _build_strata_table(strata: pd.DataFrame, heads: dict[str, str], cell: int) -> Table:
    table = Table(title=TITLE, title_justify="left", box=SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    table.add_column("(questions)", max_width=NAME, min_width=NAME)
    for head in heads.values():
        table.add_column(Text(head), justify="right", no_wrap=True, min_width=cell - 1)
    factor = ""
    for level in list_levels(strata):
        if level.factor != factor:
            factor = level.factor
            table.add_row(Text(factor, "bold"))
        cells = _format_cells(level, heads, _format_terminal_cell)
        table.add_row(Text(f"  {level.level} ({level.questions})"), *map(dim_below, cells))
    return table
