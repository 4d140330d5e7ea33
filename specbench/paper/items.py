"""The survey's Spec-Bench figures and tables, the leaderboards, and every other published table.

Each item selects published rows and the column whose values are its groups of bars.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pandas as pd

from specbench.paper.published import LEADERBOARD, SURVEY, read_leaderboard, read_published
from specbench.records.trial import OVERALL

TASKS = ["mt_bench", "translation", "summarization", "qa", "math_reasoning", "rag", OVERALL]
HEAD = "fd2c1cd"  # of the leaderboard, 2025-04-22
SHORT = {"3090": "RTX 3090", "A100": "A100 80GB", "A6000": "RTX A6000", "H100": "H100"}


@dataclass(frozen=True)
class Item:
    """One figure. name: of its files; across: the column whose values are the groups."""

    name: str
    title: str
    across: str
    rows: Callable[[], pd.DataFrame]
    note: str = ""


def shorten_device(name: str) -> str:
    """Return the short name of a GPU, or the name itself."""
    return next((short for part, short in SHORT.items() if part in name), name)


def _select_survey(*items: str, overall: bool = False, target: str | None = None) -> pd.DataFrame:
    """Return speedups with their standard deviations over three runs (column `sd`)."""
    rows = read_published()
    rows = rows[rows["source"].str.startswith(SURVEY) & rows["item"].isin(items)]
    if overall:
        rows = rows[rows["task"] == OVERALL]
    if target:
        rows = rows[rows["target"] == target]
    keys = ["source", "device", "target", "method", "task", "temperature", "dtype"]
    spread = rows[rows["metric"] == "speedup_std_over_3_runs"].set_index(keys)["value"].rename("sd")
    speedups = rows[rows["metric"] == "speedup"].join(spread, on=keys)
    return speedups.assign(device=speedups["device"].map(shorten_device)).rename(columns={"value": "speedup"})


FIGURE_5, SAMPLED = "Table 5 (also Fig.5)", "Table 5 (T=1; Fig.6 right end)"
TABLE_6, TABLE_6_LARGE = "Table 6 (also Fig.7,8,9)", "Table 6 (also Fig.9)"
SEVEN = "Vicuna-7B-v1.3"


def _select_figure_6() -> pd.DataFrame:
    rows = _select_survey(FIGURE_5, SAMPLED, overall=True)
    sampled = set(rows.loc[rows["temperature"] == 1, "method"])
    return rows[rows["method"].isin(sampled)]


LARGE = {size: partial(_select_survey, TABLE_6_LARGE, target=f"Vicuna-{size}-v1.3") for size in ("13B", "33B")}
SURVEY_ITEMS = (
    Item("survey-figure-5", "Figure 5 and Table 5: RTX 3090, Vicuna-7B, greedy", "task", partial(_select_survey, FIGURE_5)),
    Item("survey-table-5-sampled", "Table 5: RTX 3090, Vicuna-7B, temperature 1", "task", partial(_select_survey, SAMPLED)),
    Item(
        *("survey-figure-6", "Figure 6: by temperature, RTX 3090, Vicuna-7B, overall", "temperature", _select_figure_6),
        note="Both ends, as printed in Table 5; the curve between them has no numbers.",
    ),
    Item(
        *("survey-figure-7", "Figure 7: by device, Vicuna-7B, overall", "device"),
        rows=partial(_select_survey, FIGURE_5, TABLE_6, overall=True, target=SEVEN),
        note="Both devices' values are printed in Tables 5 and 6.",
    ),
    Item("survey-figure-8", "Figure 8 and Table 6: A100, Vicuna-7B", "task", partial(_select_survey, TABLE_6)),
    Item(
        *("survey-figure-9", "Figure 9 and Table 6: by target size, A100, overall", "target"),
        rows=partial(_select_survey, TABLE_6, TABLE_6_LARGE, overall=True),
    ),
    *(Item(f"survey-table-6-{name.lower()}", f"Table 6: A100, Vicuna-{name}", "task", rows) for name, rows in LARGE.items()),
    Item(
        *("survey-figure-10", "Figure 10: by precision, A100, Vicuna-7B, overall", "dtype"),
        rows=partial(_select_survey, TABLE_6, "Fig.10 (text)", overall=True, target=SEVEN),
        note="For float32 the survey's text gives two numbers; the other bars have none.",
    ),
)


def _select_leaderboard(device: str, target: str) -> pd.DataFrame:
    rows = read_leaderboard()
    chosen = rows["source"].str.contains(HEAD) & rows["device"].str.contains(device) & (rows["target"] == target)
    return rows[chosen].assign(device=shorten_device(device), item="Leaderboard.md")


def _build_leaderboard(device: str, target: str) -> Item:
    name = f"leaderboard-{device}-{target}".lower().replace(".", "")
    title = f"Leaderboard: {shorten_device(device)}, {target}, greedy, float16 (2025-04-22)"
    return Item(name, title, "task", partial(_select_leaderboard, device, target))


LEADERBOARDS = tuple(
    _build_leaderboard(device, target)
    for device, target in (("3090", SEVEN), *(("A100", f"Vicuna-{size}-v1.3") for size in ("7B", "13B", "33B")))
)


def list_other_tables() -> list[tuple[str, pd.DataFrame]]:
    """Return (title, rows) of every other published table, rows as printed."""
    rows = read_published()
    plotted = rows["source"].str.startswith(LEADERBOARD) | (
        rows["source"].str.startswith(SURVEY) & rows["metric"].ne("speedup_range")
    )
    tables = []
    for (source, item), group in rows[~plotted].groupby(["source", "item"], sort=False):
        columns = [name for name in ("device", "target", "method", "task", "setting") if group[name].nunique() > 1]
        wide = group.pivot_table(index=columns or ["method"], columns="metric", values="text", aggfunc="first", sort=False)
        tables.append((f"{source}, {item}", wide.reset_index()))
    return tables
