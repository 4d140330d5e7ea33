"""Write the tables of README and docs from the runs that they show, or check them: python -m benchmarks.published [--check].

A table lies between two comments. The first names its kind, its run in results/reference, and further words:

    <!-- table: headline cpu-smollm2 -->
    ...
    <!-- end of table -->
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import pandas as pd

from specbench import ROOT
from specbench.analysis.loaded_run import read_run
from specbench.analysis.summary import summarise
from specbench.errors import InputError, suggest_choices
from specbench.records.files import write_atomic
from specbench.records.markdown import format_markdown_table
from specbench.records.trial import BASELINE, OVERALL
from specbench.report.tables import (
    SummaryRow,
    format_interval,
    format_label,
    format_number,
    format_rank,
    format_share,
    order_by_speed,
)

RUNS = ROOT / "results/reference"
TABLE = re.compile(r"(<!-- table: (.+?) -->\n).*?(<!-- end of table -->)", re.DOTALL)
COLUMNS: dict[str, Callable[[SummaryRow], str]] = {
    "overall": format_interval,
    "rank": format_rank,
    "accepted": lambda row: format_number(row["mean_accepted_tokens"]),
    "tokens/s": lambda row: format_number(row["tokens_per_second"], 1),
    "conversion": lambda row: format_number(row["conversion"], missing=""),
    "identical": lambda row: format_share(row["identical"]),
    "lossless": lambda row: str(row["lossless"]),
}
HEADLINE = ("overall", "tasks", "accepted", "tokens/s", "identical")


def list_pages() -> list[Path]:
    """Return the pages that may hold tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@lru_cache
def read_summary(run: str) -> pd.DataFrame:
    """Return the rows of summary.csv, computed from the run's records."""
    return summarise(read_run(RUNS / run))


def fill_tables(text: str) -> str:
    """Return the text with every table made from its run. Raises InputError for a kind, run or column that is not there."""
    return TABLE.sub(lambda found: found[1] + "\n".join(format_table(found[2].split())) + "\n" + found[3], text)


def format_table(words: list[str]) -> list[str]:
    """Return a table's lines, the fastest method first. words: headline RUN, intervals RUN, or columns RUN COLUMN…"""
    kind, run, *columns = words
    if kind == "columns":
        return tabulate(read_summary(run), columns, format_interval)
    cells = {"headline": lambda row: format_number(row["speedup"]), "intervals": format_interval}
    if kind not in cells:
        raise InputError(f"table {kind}: no such kind; expected {suggest_choices(kind, [*cells, 'columns'])}")
    return tabulate(read_summary(run), HEADLINE, cells[kind])


def tabulate(summary: pd.DataFrame, columns: tuple[str, ...] | list[str], cell: Callable[[SummaryRow], str]) -> list[str]:
    """Return a table with one row per method. cell: a speedup on one task, in the columns that `tasks` is replaced by."""
    tasks = [str(task) for task in summary["task"].unique() if task != OVERALL]
    shown = [part for column in columns for part in (tasks if column == "tasks" else [column])]
    if unknown := [name for name in shown if name not in COLUMNS and name not in tasks]:
        raise InputError(f"{unknown[0]}: no such column; expected {suggest_choices(unknown[0], list(COLUMNS))}")
    rows = list(_format_rows(summary, shown, cell))
    return format_markdown_table(["method", *(name.replace("_", " ") for name in shown)], rows, left=1)


def _format_rows(summary: pd.DataFrame, shown: list[str], cell: Callable[[SummaryRow], str]) -> Iterator[list[str]]:
    by_place = {(row["method"], row["task"]): row for _, row in summary.iterrows()}
    for _, row in order_by_speed(summary[summary["task"] == OVERALL]).iterrows():
        method = row["method"]
        values = [COLUMNS[name](row) if name in COLUMNS else cell(by_place[method, name]) for name in shown]
        yield [f"*{method}*" if method == BASELINE else _quote(row), *values]


def _quote(row: SummaryRow) -> str:
    """Return `suffix` (warm)."""
    label, _, mark = format_label(row).partition(" ")
    return " ".join(filter(None, [f"`{label}`", mark]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if a page differs from its runs")
    check = parser.parse_args().check
    stale = 0
    for page in list_pages():
        text = page.read_text(encoding="utf-8")
        if (filled := fill_tables(text)) == text:
            continue
        stale += 1
        print(f"{page.relative_to(ROOT)}: {'differs from its runs' if check else 'written'}")
        if not check:
            write_atomic(page, filled)
    return int(check and stale > 0)


if __name__ == "__main__":
    sys.exit(main())
