"""The gain of each engine's methods over its own autoregressive decoding, and whether engines agree on texts and steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from specbench.analysis import metrics
from specbench.analysis.engines import tabulate_engines
from specbench.analysis.loaded_run import LoadedRun, find_first
from specbench.records.trial import BASELINE, OVERALL
from specbench.report.alarm import Alarm
from specbench.report.tables import format_number, format_words

SHOWN = 6  # positions; acceptance.csv has all
HEADER = [
    "method", "over its engine's own", "texts equal to its engine's own", "texts equal to the first engine's",
    "mean accepted tokens", "on the first engine", "equal steps", "why steps differ (first difference of each turn)",
]  # fmt: skip


def tabulate_words(run: LoadedRun, summary: pd.DataFrame) -> pd.DataFrame:
    """Return `tabulate_engines` and the gains as words; empty for a run of one engine in this process."""
    table = tabulate_engines(run)
    overall = summary[summary["task"] == OVERALL].set_index("method")
    rows = [_format_row(row, overall.loc[row["label"]]) for _, row in table.iterrows()]
    return pd.DataFrame(rows, columns=HEADER)


def _format_row(row: pd.Series, overall: pd.Series) -> list[str]:
    method, _, engine = str(row["label"]).partition("@")
    return [
        str(row["label"]),
        "–" if method == BASELINE else _format_gain(overall),
        _format_share(row["equal_texts"], row["turns"]),
        _format_share(row["same_texts"], row["compared_turns"]),
        format_number(overall["mean_accepted_tokens"]),
        format_number(row["other_mean_accepted_tokens"]) if engine else "–",
        _format_share(row["equal_steps"], row["steps"]),
        "–" if pd.isna(row["reasons"]) else row["reasons"] or "none does",
    ]


def _format_gain(overall: pd.Series) -> str:
    interval = overall["engine_speedup_low"]
    limits = "" if pd.isna(interval) else f" [{interval:.2f}, {overall['engine_speedup_high']:.2f}]"
    return format_number(overall["engine_speedup"]) + limits


def _format_share(part: Any, whole: Any) -> str:
    return "–" if pd.isna(whole) or not whole else f"{part:.0f} of {whole:.0f}"


def tabulate_acceptance(run: LoadedRun) -> pd.DataFrame:
    """Return, for methods whose steps several engines report, the share of steps that accept a draft token at each position."""
    positions = metrics.tabulate_positions(trial for trial in run.trials if trial.drafted is not None)
    engines = positions.groupby(positions["method"].map(lambda label: label.partition("@")[0]))["method"].transform("nunique")
    shown = positions[(engines > 1) & (positions["position"] <= SHOWN)]
    wide = shown.pivot(index="method", columns="position", values="joint")
    words = wide.map(format_number).rename(columns=lambda position: f"position {position}").reset_index()
    return words.rename_axis(columns=None)


def format_engines(words: pd.DataFrame, acceptance: pd.DataFrame) -> str:
    """Return `tabulate_words` and `tabulate_acceptance` as Markdown."""
    tables = [format_words(words)]
    if len(acceptance):
        tables.append(f"Share of steps that accept a draft token at each position:\n\n{format_words(acceptance)}")
    return "\n".join(tables)


def build_tables(run: LoadedRun, summary: pd.DataFrame) -> list[pd.DataFrame]:
    """Return both tables of words; none for a run of one engine in this process."""
    words = tabulate_words(run, summary)
    return [words, tabulate_acceptance(run)] if len(words) else []


def warn_texts(run: LoadedRun) -> Iterator[Alarm]:
    """Warn of methods whose greedy texts are not those of autoregressive decoding on the same server or engine."""
    if find_first(run.config, "sampling.temperature") != 0:
        return
    for _, row in tabulate_engines(run).iterrows():
        engine = str(row["label"]).partition("@")[2]
        if row["equal_texts"] < row["turns"]:
            than = f"{BASELINE}@{engine}" if engine else BASELINE
            differ = f"{row['turns'] - row['equal_texts']:.0f} of {row['turns']:.0f} texts differ from those of {than}"
            yield Alarm("alarm", str(row["label"]), OVERALL, f"{differ}: first {row['text_difference']}")


def warn_text_only(run: LoadedRun) -> Iterator[Alarm]:
    """Report the methods whose equality is one of texts."""
    methods = sorted({trial.method for trial in run.trials if trial.client_first_s is not None and trial.output_sha256 is None})
    methods = [method for method in methods if any(trial.method == method and not trial.failed for trial in run.trials)]
    if methods:
        message = f"{', '.join(methods)}: the server returns no token ids, so equality is of texts"
        yield Alarm("notice", "the run", OVERALL, message)
