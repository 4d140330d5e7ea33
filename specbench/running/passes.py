"""A pass: an arm's turns of one repeat, asked for by several clients at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import Lock
from time import perf_counter
from typing import Any

from specbench.decoding.loop import Generation
from specbench.records.trial import Trial
from specbench.running.clients import run_clients
from specbench.running.schedule import Arm, Block, Group, Schedule
from tasks.question import Question

Outcome = tuple[Generation, Mapping[str, Any]] | BaseException  # of a turn: what was generated and measured, or why nothing


@dataclass
class Pass:
    """render: the prompt of a turn, which may continue earlier ones. record: its trial. Neither is called by two at a time."""

    arm: Arm
    repeat: int
    schedule: Schedule
    render: Callable[[Arm, Block, Question], list[int]]
    record: Callable[[Arm, Block, list[int], Outcome], Trial]
    _done: list[tuple[float, Trial]] = field(default_factory=list)  # when each request was sent, by this process's clock
    _lock: Any = field(default_factory=Lock)

    def run(self, questions: Sequence[Question]) -> list[Trial]:
        """Ask all questions, and return their turns in the order in which they were sent."""
        run_clients(questions, self.schedule.concurrency, self._ask_question)
        start = min((began for began, _ in self._done), default=0.0)
        return [replace(trial, began_s=began - start) for began, trial in sorted(self._done, key=lambda one: one[0])]

    def _ask_question(self, question: Question, client: int, stopped: Callable[[], bool]) -> None:
        for turn in range(len(question.turns)):
            block = Block(self.repeat, Group((question,)), turn, (self.arm,))
            with self._lock:
                prompt = self._render(block, question)
            began = perf_counter()
            outcome = prompt if isinstance(prompt, BaseException) else self._generate(block, question, prompt)
            with self._lock:
                if stopped():
                    return
                trial = self.record(self.arm, block, prompt if isinstance(prompt, list) else [], outcome)
                self._done.append((began, replace(trial, client=client)))

    def _render(self, block: Block, question: Question) -> list[int] | BaseException:
        try:
            return self.render(self.arm, block, question)
        except (Exception, SystemExit) as error:
            return error

    def _generate(self, block: Block, question: Question, prompt: list[int]) -> Outcome:
        try:
            return self.arm.engine.generate(self.arm.method, prompt, self.schedule.get_sampling(block, question)), {}
        except (Exception, SystemExit) as error:  # of any server, and the run continues
            return error
