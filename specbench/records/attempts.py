"""Which attempt of a turn counts, if its block was disturbed and measured again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from specbench.records.trial import Trial, TrialKey

AttemptKey = tuple[TrialKey, int]


def get_attempt_key(trial: Trial) -> AttemptKey:
    """Return the fields that identify an attempt at a turn."""
    return trial.key, trial.attempt


def select_complete(trials: Iterable[Trial]) -> list[Trial]:
    """Return the turns of complete attempts, in their order.

    A later attempt at a block that was interrupted by a kill is left out: its turns are not comparable with those of an earlier
    one. If a turn was recorded twice, as when a warm method restarts its repeat, the last record is kept.
    """
    last = {get_attempt_key(trial): trial for trial in trials}
    done = Counter((trial.block, trial.attempt) for trial in last.values())
    return [trial for trial in last.values() if trial.arms is None or done[trial.block, trial.attempt] >= trial.arms]


def select_whole(trials: Iterable[Trial]) -> list[Trial]:
    """Return the trials without questions of which a method's repeat lacks a turn, where their number of turns is recorded.

    The run was stopped or killed there: part of a question is another question. A replay leaves out what failed in its run.
    """
    listed = list(trials)
    found = Counter(trial.key[:3] for trial in listed)
    return [trial for trial in listed if trial.kind == "replayed" or found[trial.key[:3]] >= (trial.turns or 0)]


def select_counted(trials: Iterable[Trial]) -> list[Trial]:
    """Return one trial per turn, in the order of the first attempts: that of the last complete attempt at its block."""
    counted: dict[TrialKey, Trial] = {}
    for trial in select_complete(trials):
        if trial.key not in counted or trial.attempt > counted[trial.key].attempt:
            counted[trial.key] = trial
    return list(counted.values())
