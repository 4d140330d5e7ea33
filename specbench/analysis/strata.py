"""Speedup and acceptance by strata: groups of questions and turns that share something besides their task.

A factor splits the turns into levels: the category, how many turns the question has, which of them it is, the prompt's length,
and whatever the suite says about its questions, such as their language. A question counts in a level with those of its turns that
belong there. The rest is as for a task: pairs by question, equal weights of a level's questions, the same bootstrap.
"""

from __future__ import annotations

from dataclasses import astuple

import pandas as pd

from specbench.analysis import metrics, statistics
from specbench.analysis.groups import is_batched, merge_groups
from specbench.analysis.loaded_run import LoadedRun, order_methods
from specbench.analysis.metrics import CELL
from specbench.records.names import split_numbers
from specbench.records.trial import BASELINE

LENGTH = "prompt tokens"
MOST_LEVELS = 40  # of a factor: one with more, such as the source of each text, gets no table
COUNTS = ["questions", "mean_accepted_tokens", "acceptance_rate"]
SPEEDUPS = ["speedup", "speedup_low", "speedup_high"]
COLUMNS = ["factor", "level", "method", *COUNTS, *SPEEDUPS]


def tabulate_strata(run: LoadedRun) -> pd.DataFrame:
    """Return COLUMNS, a row per factor, level and drafting method. A factor has two levels or more; nan: no such number."""
    factors = {name: levels for name, levels in assign_levels(run).items() if 2 <= levels.nunique() <= MOST_LEVELS}
    tables = [_tabulate_factor(run.frame, levels).assign(factor=name) for name, levels in factors.items()]
    rows = pd.concat(tables, ignore_index=True)[COLUMNS] if tables else pd.DataFrame(columns=COLUMNS)
    methods, names = order_methods([run]), list(factors)
    order = [
        (names.index(factor), split_numbers(level), methods.index(method))
        for factor, level, method in rows[["factor", "level", "method"]].itertuples(index=False, name=None)
    ]
    return rows.iloc[sorted(range(len(rows)), key=order.__getitem__)].reset_index(drop=True)


def assign_levels(run: LoadedRun) -> dict[str, pd.Series]:
    """Return, by factor, the level of every row of the run's frame; nan where it has none.

    A category named like its task is already a row of the first table, so it is not a level. Prompts are those of autoregressive
    decoding, so that a turn is in the same level for every method.
    """
    frame = run.frame
    turns = frame.groupby("question_id")["turn"].transform("max") + 1
    levels = {
        "category": frame["category"].where(frame["category"] != frame["task"]),
        "turns per question": turns.astype(str),
        "turn": (frame["turn"] + 1).astype(str),
        LENGTH: _find_prompt_lengths(frame).map(name_bucket, na_action="ignore"),
    }
    named = sorted({name for strata in run.strata.values() for name in strata} - set(levels))
    for name in named:
        known = {question: strata[name] for question, strata in run.strata.items() if name in strata}
        levels[name] = frame["question_id"].map(known)
    return {name: _keep_whole_groups(frame, level) for name, level in levels.items()}


def _keep_whole_groups(frame: pd.DataFrame, level: pd.Series) -> pd.Series:
    """Return nan for groups with questions of several levels, as their time belongs to none of these, and for smaller groups."""
    if not is_batched(frame):
        return level
    mixed = level.fillna("").groupby([frame["group"], frame["turn"]]).transform("nunique") > 1
    return level.mask(mixed | (frame["batch"] < frame["batch"].max()))


def name_bucket(tokens: float) -> str:
    """Return the bucket of a prompt's length, from one power of two to the next: 256–511."""
    low = 2 ** (int(tokens).bit_length() - 1)
    return f"{low}–{2 * low - 1}"


def _find_prompt_lengths(frame: pd.DataFrame) -> pd.Series:
    """Return, for every row, how many tokens autoregressive decoding's prompt has in that turn; nan: not recorded."""
    turn = ["question_id", "turn"]
    known = frame[(frame["method"] == BASELINE) & (frame["prompt_tokens"] > 0)]
    lengths = known.groupby(turn)["prompt_tokens"].first().rename("length")
    return frame[turn].join(lengths, on=turn)["length"]


def _tabulate_factor(frame: pd.DataFrame, levels: pd.Series) -> pd.DataFrame:
    """Return COLUMNS without the factor; the levels take the place of tasks."""
    placed = frame.assign(task=levels)[levels.notna()]
    pairs = metrics.pair_with_baseline(metrics.build_question_frame(merge_groups(placed)))
    pairs = pairs[pairs["method"] != BASELINE]
    counts = metrics.pool_cells(pairs)[COUNTS]
    ratios = metrics.compute_question_ratios(pairs).dropna(subset=["log_speedup"])
    speedups = {cell: astuple(statistics.speedup([logs.to_numpy(float)])) for cell, logs in ratios.groupby(CELL)["log_speedup"]}
    rows = counts.reset_index().rename(columns={"task": "level"})
    limits = [speedups.get(cell, (float("nan"),) * 3) for cell in rows[["method", "level"]].itertuples(index=False, name=None)]
    return rows.join(pd.DataFrame(limits, columns=SPEEDUPS, dtype=float))
