"""Windows of passes under load: between warm-up and drain.

A pass is a method's turns of one repeat, sent by C clients, each of which sends its next request once its last one is answered.
Its window opens when every client has had its first answer, and closes when the first client finds no question left: in between,
C requests are always in progress. A token counts in the window if it came then; tokens after the first are spread evenly. One
client at a time is a window from the first request to the last answer, without pauses.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from specbench.records.trial import Trial


@dataclass(frozen=True)
class Window:
    """One pass between warm-up and drain. sent: turns that were sent in it and did not fail; failed: how many did."""

    seconds: float
    tokens: float
    sent: list[Trial]
    failed: int


def is_loaded(trials: Iterable[Trial]) -> bool:
    """Return whether several requests were sent at a time."""
    return any(trial.concurrency > 1 for trial in trials)


def build_window(trials: Sequence[Trial]) -> Window:
    """Return the window of one pass; of 0 seconds if there is no time between warm-up and drain."""
    timed = [trial for trial in trials if trial.client_last_s is not None and not trial.failed]
    failed = [trial for trial in trials if trial.failed]
    if not is_loaded(trials):
        return Window(sum(map(_get_last, timed)), sum(trial.new_tokens for trial in timed), timed, len(failed))
    opens, closes = find_limits(timed)
    sent = [trial for trial in timed if opens <= _get_began(trial) < closes]
    tokens = sum(_count_tokens(trial, opens, closes) for trial in timed)
    return Window(max(closes - opens, 0.0), tokens, sent, sum(opens <= _get_began(trial) < closes for trial in failed))


def find_limits(timed: Sequence[Trial]) -> tuple[float, float]:
    """Return when the window of a pass opens and closes, in seconds since its first request."""
    ends: dict[int | None, list[float]] = {}
    for trial in sorted(timed, key=_get_began):
        ends.setdefault(trial.client, []).append(_get_began(trial) + _get_last(trial))
    whole = len(ends) == max((trial.concurrency for trial in timed), default=1)  # else a client had no question from the start
    return max((one[0] for one in ends.values()), default=0.0), min((one[-1] for one in ends.values()), default=0.0) * whole


def _get_began(trial: Trial) -> float:
    return trial.began_s or 0.0


def _get_last(trial: Trial) -> float:
    return trial.client_last_s or 0.0


def _count_tokens(trial: Trial, opens: float, closes: float) -> float:
    """Return how many of an answer's tokens came during a window."""
    first, last = _get_began(trial) + (trial.client_first_s or 0.0), _get_began(trial) + _get_last(trial)
    counted = float(opens <= first < closes)
    if last > first:
        counted += (trial.new_tokens - 1) * max(0.0, min(last, closes) - max(first, opens)) / (last - first)
    elif counted:
        counted += trial.new_tokens - 1
    return counted


def select_window(trials: Sequence[Trial]) -> list[Trial]:
    """Return the turns that count in speedups: under load, of questions whose turns were all sent in the window, or failed."""
    if not is_loaded(trials):
        return list(trials)
    passes: dict[tuple[str, int], list[Trial]] = {}
    for trial in trials:
        passes.setdefault((trial.method, trial.repeat), []).append(trial)
    return [trial for one in passes.values() for trial in _select_whole(one)]


def _select_whole(trials: Sequence[Trial]) -> list[Trial]:
    counted = {trial.key for trial in build_window(trials).sent} | {trial.key for trial in trials if trial.failed}
    partial = {trial.question_id for trial in trials if trial.key not in counted}
    return [trial for trial in trials if trial.question_id not in partial]
