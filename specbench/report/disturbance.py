"""Disturbed turns in words: how many, of which methods, by what, and whether they were measured again without disturbance."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from specbench.analysis.disturbance import Reasons
from specbench.analysis.loaded_run import LoadedRun
from specbench.records.attempts import get_attempt_key
from specbench.records.trial import BlockKey, Trial, TrialKey

NUMBER = re.compile(r"\d+(\.\d+)?")  # how much, in a reason
SHOWN = 60  # blocks on the page; trials.jsonl has all


@dataclass(frozen=True)
class DisturbedBlock:
    """A row of the page: one repeat, question and turn, counted from 1, and its outcome."""

    task: str
    question_id: int | str
    turn: int
    repeat: int
    methods: str
    reasons: str
    attempts: int
    mended: bool


def describe_disturbed(run: LoadedRun) -> tuple[str, str] | None:
    """Return the level and the message of an alarm about a run's disturbed turns; None if there were none."""
    ever: dict[TrialKey, list[str]] = {}
    for (key, _), reasons in run.disturbed.items():
        ever.setdefault(key, []).extend(reasons)
    left = [trial for trial in run.trials if get_attempt_key(trial) in run.disturbed]
    if not ever:
        return None
    if not left:
        by = _count_kinds(ever.values())
        return (
            "notice",
            f"{len(ever)} of {len(run.trials)} turns were disturbed, by {by}; all were measured again without disturbance",
        )
    methods = _format_counts(Counter(trial.method for trial in left))
    by = _count_kinds(run.disturbed[get_attempt_key(trial)] for trial in left)
    message = f"{len(left)} of {len(run.trials)} turns are disturbed ({methods}) by {by}"
    mended = len(ever) - len({trial.key for trial in left})
    return "alarm", message + f"; {mended} others were measured again without disturbance" * bool(mended)


def list_disturbed_blocks(run: LoadedRun) -> list[DisturbedBlock]:
    """Return at most SHOWN blocks that were disturbed, first those that still are."""
    blocks: dict[BlockKey, list[Trial]] = {}
    for trial in run.attempts:
        if get_attempt_key(trial) in run.disturbed:
            blocks.setdefault(trial.block, []).append(trial)
    left = {trial.block for trial in run.trials if get_attempt_key(trial) in run.disturbed}
    attempts = Counter[BlockKey]()
    for trial in run.attempts:
        attempts[trial.block] = max(attempts[trial.block], trial.attempt)
    rows = [_build_row(turns, run.disturbed, attempts[block], block not in left) for block, turns in blocks.items()]
    return sorted(rows, key=lambda row: row.mended)[:SHOWN]


def _build_row(turns: list[Trial], disturbed: Reasons, attempts: int, mended: bool) -> DisturbedBlock:
    """turns: the disturbed attempts at the turns of one block."""
    first = turns[0]
    worst: dict[str, str] = {}
    for reason in (reason for trial in turns for reason in disturbed[get_attempt_key(trial)]):
        kind = NUMBER.sub("", reason)
        worst[kind] = max(reason, worst.get(kind, reason), key=_read_number)
    methods = ", ".join(dict.fromkeys(trial.method for trial in turns))
    place = (first.task, first.question_id, first.turn + 1, first.repeat + 1)
    return DisturbedBlock(*place, methods, "; ".join(worst.values()), attempts, mended)


def _read_number(reason: str) -> float:
    found = NUMBER.search(reason)
    return float(found[0]) if found else 0.0


def _count_kinds(reasons: Iterable[list[str]]) -> str:
    """Return `other processes 12, waiting for a core 9`: turns by kind of reason."""
    return _format_counts(Counter(kind for found in reasons for kind in {reason.partition(":")[0] for reason in found}))


def _format_counts(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))
