"""What a comparison can decide at all, computed from the gate's own statistics and printed before the result."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from statistics import median

from specbench.compare.baseline import RATE, Drift, find_smallest_drop
from specbench.compare.gate import DECIDES, Change, find_passing_runs, find_smallest, find_smallest_paired
from specbench.compare.runs import LATEST

SIDES = (1, 3, 10)  # runs of each side that are reported besides the given ones
CERTAINTY = f"with a probability of {DECIDES:.0%}"


def describe_power(changes: Sequence[Change], reference: int, new: int, drift: Drift | None) -> str:
    """Return which slowdowns these runs find, and more runs would. drift: None if the baseline is not compared."""
    noise, together = _pick_noise(changes), len(changes)
    if isnan(noise):
        return "can decide nothing: a task has only one question, which gives no interval; expected two or more per task"
    pairs = _list_sides(reference, new)
    smallest = [f"{find_smallest(noise, *sides, together):.1%} with {_name_sides(*sides)}" for sides in pairs]
    passing = find_passing_runs(noise, together, LATEST)
    equal = f"not even with {LATEST} runs per side" if passing is None else f"with {_name_sides(passing, passing)} or more"
    lines = f"can decide ({len(changes)} ratios of {changes[0].questions} questions, {CERTAINTY}): slowdowns of at least"
    line = f"{lines} {', '.join(smallest)}; equal versions pass {equal}"
    if drift is None:
        return line
    return f"{line}; of {RATE} alone at least {find_smallest_drop(noise, reference, new, drift):.1%}"


def describe_paired_power(versions: int, changes: Sequence[Change] = ()) -> str:
    """Return which slowdowns one run with two versions finds. changes: of a finished run; without them, what no run finds."""
    noise = _pick_noise(changes)
    if not changes:
        least = find_smallest_paired(0.0, versions)
        return (
            f"can decide ({versions} ratios in one run, {CERTAINTY}): no slowdown under {least:.1%}, however many the questions"
        )
    if isnan(noise):
        return "can decide nothing: a task has only one question, which gives no interval; expected two or more per task"
    least = find_smallest_paired(noise, versions)
    return f"can decide ({versions} ratios of {changes[0].questions} questions, {CERTAINTY}): slowdowns of at least {least:.1%}"


def _pick_noise(changes: Sequence[Change]) -> float:
    return median(change.over_questions for change in changes) if changes else float("nan")


def _list_sides(reference: int, new: int) -> list[tuple[int, int]]:
    return list(dict.fromkeys([(reference, new), *((runs, runs) for runs in SIDES)]))


def _name_sides(reference: int, new: int) -> str:
    if reference == new:
        return f"{new} {'run' if new == 1 else 'runs'} per side"
    return f"{reference} and {new} runs"
