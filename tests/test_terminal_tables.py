"""The tables of a report in terminals of several widths: nothing is wider, and no word and no number is broken."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console
from rich.table import Table

from specbench import ROOT
from specbench.analysis.loaded_run import read_run
from specbench.analysis.strata import tabulate_strata
from specbench.analysis.summary import summarise
from specbench.records.trial import BASELINE, OVERALL
from specbench.report.strata import build_strata_tables
from specbench.report.tables import describe_fastest, format_interval
from specbench.report.terminal import build_headline_tables
from tests.fake_run import made_up_trials, write_run

RUNS = ("cpu-mini-100m", "cpu-smollm2")
WIDTHS = (80, 100, 120, 140)
WORDS = {"method", "overall", "mean", "accepted", "tokens/s", "identical", "rank", "lossless"}
WORDS |= {"mt", "bench", "translation", "summarization", "qa", "math", "reasoning", "rag"}


@pytest.fixture(scope="module", params=RUNS)
def summary(request: pytest.FixtureRequest) -> pd.DataFrame:
    return summarise(read_run(ROOT / "results" / "reference" / request.param))


def draw(tables: list[Table], width: int) -> list[list[str]]:
    """Return the lines of each table."""
    pages = []
    for table in tables:
        page = io.StringIO()
        Console(file=page, width=width).print(table)
        pages.append([line.rstrip() for line in page.getvalue().splitlines()])
    return pages


def read_head(lines: list[str]) -> tuple[list[str], list[str]]:
    """Return the words of a table's head, and the lines of its rows."""
    rule = next(place for place, line in enumerate(lines) if line.startswith("──"))
    title = next(place for place, line in enumerate(lines) if line.startswith("Speedup"))
    return " ".join(lines[title + 1 : rule]).split(), lines[rule + 1 :]


@pytest.mark.parametrize("width", WIDTHS)
def test_no_line_is_wider_and_every_row_is_one_line(summary: pd.DataFrame, width: int) -> None:
    methods = list(summary["method"].unique())
    for lines in draw(build_headline_tables(summary, width), width):
        assert max(map(len, lines)) <= width, lines
        words, rows = read_head(lines)
        assert set(words) <= WORDS, "a head is broken inside a word"
        labels = [row.split()[0] for row in rows[: len(methods)]]
        assert sorted(labels) == sorted(methods), "one line per method"
        assert not re.search(r"\d\.?$|\[\d\.\d\d,$", rows[0].split("  ")[0])


@pytest.mark.parametrize("width", WIDTHS)
def test_every_width_has_the_speed_its_interval_and_what_it_rests_on(summary: pd.DataFrame, width: int) -> None:
    first, *others = draw(build_headline_tables(summary, width), width)
    page = "\n".join(first)
    for _, row in summary[summary["task"] == OVERALL].iterrows():
        assert format_interval(row) in page and f"{row['tokens_per_second']:.1f}" in page
    words, _ = read_head(first)
    assert {"overall", "accepted", "tokens/s", "identical"} <= set(words)
    tasks = {word for lines in others for word in read_head(lines)[0]}
    assert {"translation", "summarization", "reasoning", "rag"} <= tasks


def test_the_fastest_comes_first_and_the_baseline_is_marked(summary: pd.DataFrame) -> None:
    lines, *_ = draw(build_headline_tables(summary, 100), 100)
    _, rows = read_head(lines)
    speeds = [float(found[1]) for row in rows if (found := re.match(r"\S.*?\s(\d+\.\d\d)\b", row)) and ":" not in row]
    assert speeds == sorted(speeds, reverse=True) and len(speeds) == summary["method"].nunique()
    assert any(row.startswith(f"{BASELINE} (baseline)") for row in rows)


def test_a_wide_terminal_has_the_intervals_of_the_tasks(summary: pd.DataFrame) -> None:
    narrow, wide = ("\n".join("\n".join(lines) for lines in draw(build_headline_tables(summary, w), w)[1:]) for w in (80, 140))
    assert "[" not in narrow and "95 % intervals are in table.md" in narrow
    assert wide.count("[") == summary[summary["task"] != OVERALL]["speedup_low"].notna().sum() - 6, "none of the baseline"


def test_columns_that_have_no_room_are_left_out(summary: pd.DataFrame) -> None:
    for columns in ("rank", "lossless"):
        assert any(columns in lines[1] + lines[2] for lines in draw(build_headline_tables(summary, 140), 140))
    assert "lossless" not in "".join(draw(build_headline_tables(summary, 80), 80)[0][:4])


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_table_of_strata_breaks_no_word_either(name: str, width: int) -> None:
    strata = tabulate_strata(read_run(ROOT / "results" / "reference" / name))
    strata = strata.assign(label=strata["method"])
    tables = build_strata_tables(strata, width)
    assert max(len(line) for lines in draw(tables, width) for line in lines) <= width
    parts = {part for label in strata["label"] for part in re.findall(r"[^_]+_*", label)}
    for table in tables:
        table.title = None
        (lines,) = draw([table], width)
        words, rows = read_head(["Speedup", *lines])
        assert {part for word in words if word != "(questions)" for part in re.findall(r"[^_]+_*", word)} <= parts
        assert not any(re.search(r"\d\.\d?$", row) for row in rows), "a number is cut"


def test_nothing_below_one_is_called_the_fastest(tmp_path: Path) -> None:
    slower = summarise(read_run(write_run(tmp_path / "slow", made_up_trials({"pld": -0.3, "sps": -0.1}, ("qa",), 3)).path))
    assert describe_fastest(slower) == "No method is faster than autoregressive decoding."
    faster = summarise(read_run(write_run(tmp_path / "fast", made_up_trials({"pld": -0.3, "sps": 0.5}, ("qa",), 3)).path))
    assert describe_fastest(faster).startswith("Fastest: sps, ") and "pld" not in describe_fastest(faster)


def test_a_label_that_is_too_long_is_folded_and_nothing_else(tmp_path: Path) -> None:
    trials = made_up_trials({"a_method_whose_label_has_more_than_half_of_the_columns_that_there_are": 0.3}, ("qa", "rag"), 3)
    for lines in draw(build_headline_tables(summarise(read_run(write_run(tmp_path / "run", trials).path)), 80), 80):
        assert max(map(len, lines)) <= 80 and "autoregressive (baseline)" in "\n".join(lines)
