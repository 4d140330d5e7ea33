"""Stopping in time: a run with a budget begins no question that, judged from the blocks so far, would not be finished in it.

Which questions come first was drawn from the seed before any of them ran (`schedule.order_groups`), so a run that stops holds the
first ones of that order. When it stops depends on the clock alone: on how long whole blocks took, all arms together, and never on
the speed of one arm, nor on the question that would be next. The longest block of a task and turn so far counts as the next
one's time. A question that takes longer than all before it may outlast the budget: its turns that no longer fit are not begun,
and the reports leave it out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import inf
from statistics import mean
from time import monotonic
from typing import Any

from specbench.running.schedule import Block
from tasks.question import Question

REPORT = 10.0  # seconds that are kept for tables and figures, at most a tenth of the budget


@dataclass
class TimeBudget:
    """seconds: from `started`, by `clock`. spent: a block was refused, so none is begun any more."""

    seconds: float = inf
    started: float = 0.0
    clock: Callable[[], float] = monotonic
    spent: bool = field(default=False, init=False)
    _blocks: dict[tuple[str, int], list[float]] = field(default_factory=dict, init=False)  # seconds, by task and turn
    _ready: float = field(default=0.0, init=False)  # seconds until the first block

    @property
    def limited(self) -> bool:
        return self.seconds < inf

    @property
    def over(self) -> bool:
        return self._used >= self._measuring

    @property
    def _used(self) -> float:
        return self.clock() - self.started

    @property
    def _measuring(self) -> float:
        """Seconds until the last block has to end."""
        return self.seconds - min(REPORT, self.seconds / 10)

    def admits(self, block: Block) -> bool:
        """Whether a block's question can be finished in time: this turn, and those after it."""
        self._ready = self._ready or self._used
        question = block.group.questions[0]
        needed = sum(self._estimate(question.task, turn) for turn in range(block.turn, block.group.turns))
        self.spent = self.spent or (self.limited and self._used + needed >= self._measuring)
        return not self.spent

    def add(self, block: Block, seconds: float) -> None:
        """Learn how long all arms of a block took together."""
        self._blocks.setdefault((block.group.questions[0].task, block.turn), []).append(seconds)

    def _estimate(self, task: str, turn: int) -> float:
        """Return the seconds of the longest block of the task and turn so far; of any, where there is none yet."""
        known = self._blocks.get((task, turn)) or [one for every in self._blocks.values() for one in every]
        return max(known, default=0.0)

    def describe(self, questions: Iterable[Question], batch: int) -> dict[str, Any]:
        """Return what run.json says: seconds given and used, questions by task, the mean time of one's turns with all arms."""
        counts: dict[str, int] = {}
        turns: dict[str, int] = {}
        for question in questions:
            counts[question.task] = counts.get(question.task, 0) + 1
            turns[question.task] = turns.get(question.task, 0) + len(question.turns)
        paces = {task: self._measure_pace(task) * turns[task] / counts[task] / batch for task in counts}
        return {
            "seconds": self.seconds,
            "used_s": round(self._used, 3),
            "ready_s": round(self._ready, 3),
            "questions": counts,
            "question_s": {task: round(pace, 3) for task, pace in paces.items()},
        }

    def _measure_pace(self, task: str) -> float:
        """Return the mean seconds of a block of the task; of any, where there is none yet."""
        own = [one for (of, _), every in self._blocks.items() if of == task for one in every]
        return mean(own or [one for every in self._blocks.values() for one in every] or [0.0])
