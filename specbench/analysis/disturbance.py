"""Find the turns that were disturbed, by the counters during the turn or by a time far outside its other repeats.

A turn is far outside if it took FAR times as long as the median of the same turn's other repeats by the same method, or more,
with the same tokens, steps and nodes: different counts may explain a different time. Where a run's repeats scatter
widely, it also has to lie SPREADS of the run's own standard deviations above that median (1.4826 × the median absolute deviation
of all turns' logarithms, which a few disturbed turns do not move). The rule is the same for autoregressive decoding and for
every method.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from specbench.analysis.metrics import CELL, add_overall
from specbench.records.attempts import AttemptKey, get_attempt_key
from specbench.records.trial import PER_STEP, Trial, TrialKey

FAR = 1.5  # times the median of the other repeats
SPREADS = 4  # standard deviations of a run's repeats
TIMED = ("measured", "synthetic")
COUNTS = ["disturbed", "remeasured", "still_disturbed"]

Reasons = dict[AttemptKey, list[str]]
Turn = list[Trial]  # of every question of a group that did not fail


def find_disturbed(attempts: Sequence[Trial], counted: Sequence[Trial]) -> Reasons:
    """Return the attempts that were disturbed, each with its reasons as `kind: how much`. Only finished turns are timed."""
    far = _find_far(attempts, counted)
    reasons: Reasons = {}
    for trial in attempts:
        ratio = far.get(get_attempt_key(trial))
        found = [*(trial.disturbed or ()), *([f"time: {ratio:.1f} times its other repeats"] if ratio else [])]
        if found and not trial.failed:
            reasons[get_attempt_key(trial)] = found
    return reasons


def _find_far(attempts: Iterable[Trial], counted: Iterable[Trial]) -> dict[AttemptKey, float]:
    """Return the ratio to the median of the other repeats of each attempt that is far outside. counted: the other repeats."""
    turns, groups = _gather_turns(attempts), dict[Any, list[Turn]]()
    for turn in _gather_turns(counted):
        groups.setdefault(_identify_work(turn), []).append(turn)
    usual = [_compare(turn, group) for group in groups.values() for turn in group]
    logs = [abs(math.log(ratio)) for ratio in usual if ratio]
    spread = 1.4826 * statistics.median(logs) if logs else 0.0
    bound = max(FAR, math.exp(min(SPREADS * spread, 100.0)))
    ratios = [(turn, _compare(turn, groups.get(_identify_work(turn), []))) for turn in turns]
    far = [(turn, ratio) for turn, ratio in ratios if ratio is not None and ratio >= bound]
    return {get_attempt_key(trial): ratio for turn, ratio in far for trial in turn}


def _gather_turns(trials: Iterable[Trial]) -> list[Turn]:
    """Return the turns that were timed, each with all questions of its group, which share its time."""
    turns: dict[Any, Turn] = {}
    for trial in filter(_is_timed, trials):
        turns.setdefault((trial.method, trial.block, trial.attempt), []).append(trial)
    return list(turns.values())


def _is_timed(trial: Trial) -> bool:
    alone = trial.concurrency == 1  # under load, what else is being answered differs from repeat to repeat
    return trial.kind in TIMED and not trial.failed and trial.seconds > 0 and alone


def _identify_work(turn: Turn) -> Any:
    """Return what makes two turns the same work: method, question or group, turn and all counts."""
    return (turn[0].method, turn[0].block[1:], *map(_list_counts, turn))


def _list_counts(trial: Trial) -> Any:
    lists = (tuple(getattr(trial, name) or ()) for name in PER_STEP)
    return (trial.prompt_tokens, trial.new_tokens, trial.draft_forwards, *lists)


def _compare(turn: Turn, group: Iterable[Turn]) -> float | None:
    """Return the time of a turn over the median of its other repeats; None without any."""
    others = [other[0].seconds for other in group if other[0].repeat != turn[0].repeat]
    return turn[0].seconds / statistics.median(others) if others else None


def count_disturbed(attempts: Sequence[Trial], counted: Sequence[Trial], reasons: Reasons) -> pd.DataFrame:
    """Return COUNTS by (method, task), overall included: turns disturbed, measured again, and still disturbed.

    disturbed: in any attempt; still_disturbed: in the attempt that counts. nan: nothing was watched, and no time is far outside.
    """
    ever: set[TrialKey] = {key for key, _ in reasons}
    again = {trial.key for trial in attempts if trial.attempt > 1}
    watched = {trial.method for trial in attempts if trial.disturbed is not None}
    rows = []
    for trial in counted:
        found = (trial.key in ever, trial.key in again, get_attempt_key(trial) in reasons)
        rows.append(
            (trial.method, trial.task, *(1.0 if one else 0.0 if trial.method in watched else float("nan") for one in found))
        )
    frame = add_overall(pd.DataFrame(rows, columns=[*CELL, *COUNTS]))
    return frame.groupby(CELL, sort=False)[COUNTS].sum(min_count=1)
