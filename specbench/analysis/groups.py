"""Batches: the questions that were decoded side by side are one group, whose time counts once.

A group takes the place of a question: methods are paired by group, and intervals resample groups. Counts of its questions are
summed; seconds, energy and memory are the group's own, equal in each of its rows. Runs of one question at a time pass unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from specbench.records.trial import PER_STEP, Trial, name_unit

TURN = ["method", "task", "repeat", "group", "turn"]
COUNTS = ["new_tokens", "decode_tokens", "steps", "forwards", "retokenised", *PER_STEP]  # of a question, not of its group


def is_batched(trials: pd.DataFrame) -> bool:
    return bool(trials["group"].notna().any())


def merge_groups(trials: pd.DataFrame) -> pd.DataFrame:
    """Return one row per turn of a group: counts summed, nan where a question lacks one. trials: one row per question's turn.

    Groups smaller than the others, a task's last ones, are left out: they decode at another batch.
    """
    if not is_batched(trials):
        return trials
    whole = trials[trials["batch"] == trials["batch"].max()]
    turns = whole.groupby(TURN, sort=False)
    rows = turns.first()  # what all questions share, and the first one's of what they do not
    sums = turns[COUNTS]
    rows[COUNTS] = sums.sum().where(sums.count().eq(turns.size(), axis=0))
    rows["failed"] = turns["failed"].any()
    rows = rows.reset_index()
    rows["question_id"] = [name_unit("", int(group)) for group in rows["group"]]
    merged: pd.DataFrame = rows.reindex(columns=trials.columns)
    return merged


def count_left_out(trials: Sequence[Trial]) -> int:
    """Return how many questions stand in groups smaller than the others, which no speedup counts."""
    largest = max((trial.batch for trial in trials), default=1)
    return len({trial.question_id for trial in trials if trial.batch < largest})
