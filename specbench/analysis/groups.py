"""Batches: questions that were decoded side by side form one group, whose time counts once.

A group takes the place of a question: methods are paired by group, and intervals resample groups. Counts of its questions are
summed; seconds, energy and memory are the group's own, equal in each of its rows. Runs of one question at a time pass unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from specbench.records.trial import PER_STEP, Trial

TURN = ["method", "task", "repeat", "group", "turn"]
COUNTS = ["new_tokens", "decode_tokens", "steps", "forwards", "retokenised", *PER_STEP]  # of a question, not of its group


def is_batched(trials: pd.DataFrame) -> bool:
    return bool(trials["group"].notna().any())


def merge_groups(trials: pd.DataFrame) -> pd.DataFrame:
    """Return one row per turn of a group: counts summed, nan where a question lacks one. trials: one row per question's turn.

    Groups smaller than the others, a task's last ones, are left out, as they decode at another batch.
    """
    if not is_batched(trials):
        return trials
    whole = trials[trials["batch"] == trials["batch"].max()]
    turns = whole.groupby(TURN, sort=False)
    complete = turns.size() == turns["batch"].first()  # of one that is being written, lines are missing
    rows = turns.first()  # what all questions share; where they differ, the first one's
    sums = turns[COUNTS]
    rows[COUNTS] = sums.sum().where(sums.count().eq(turns.size(), axis=0))
    rows["failed"] = turns["failed"].any()
    rows["question_id"] = turns["question_id"].agg(_join_names)
    rows = rows[complete].reset_index()
    merged: pd.DataFrame = rows.reindex(columns=trials.columns)
    return merged


def _join_names(questions: pd.Series) -> str:
    """Return the name of a group in place of a question's: the same questions are the same group in every run."""
    return "+".join(map(str, questions))


def count_left_out(trials: Sequence[Trial]) -> int:
    """Return how many questions are in groups smaller than the others, which count in no speedup."""
    largest = max((trial.batch for trial in trials), default=1)
    return len({trial.question_id for trial in trials if trial.batch < largest})
