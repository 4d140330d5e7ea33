"""The display of a run: what runs, how many turns are left, how fast the methods are so far."""

import math
import time
from collections import defaultdict

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from specbench.metrics import BASELINE
from specbench.records import Trial


class ProgressDisplay:
    """A live bar in a terminal; elsewhere a line every `every` seconds."""

    def __init__(self, console: Console, every: float = 30.0) -> None:
        self.console, self.every = console, every
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self._seconds: dict[tuple, dict[str, float]] = defaultdict(dict)
        self._logs: dict[str, list[float]] = defaultdict(list)
        self._said = time.monotonic()

    def __enter__(self) -> "ProgressDisplay":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def begin(self, total: int, done: int) -> None:
        self._total, self._done = total, done
        self._task = self._bar.add_task("starting", total=total, completed=done)
        if done:
            self.console.print(f"resuming: {done} of {total} turns are there")

    def warming(self, label: str) -> None:
        self._bar.update(self._task, description=f"warming up {label}")

    def trial(self, trial: Trial) -> None:
        self._done += 1
        self._learn(trial)
        line = f"{trial.task} · repeat {trial.repeat + 1} · {self._so_far()}"
        self._bar.update(self._task, completed=self._done, description=line)
        if trial.failed:
            self.console.print(f"{trial.method}, {trial.question_id}: {trial.error}", markup=False)
        if not self.console.is_terminal and time.monotonic() - self._said > self.every:
            self._said = time.monotonic()
            self.console.print(f"{self._done}/{self._total} turns · {line}", markup=False)

    def _learn(self, trial: Trial) -> None:
        """Speed ratios need both sides of a block; they are rough here, the report makes the real ones."""
        if trial.failed or not trial.new_tokens:
            return
        block = self._seconds[(trial.repeat, trial.question_id, trial.turn)]
        block[trial.method] = ((trial.prefill_s or 0) + (trial.decode_s or 0)) / trial.new_tokens
        fresh = block if trial.method == BASELINE else {trial.method: block[trial.method]}
        for label, seconds in fresh.items():
            if BASELINE in block and label != BASELINE:
                self._logs[label].append(math.log(block[BASELINE] / seconds))

    def _so_far(self) -> str:
        parts = [f"{label} {math.exp(sum(logs) / len(logs)):.2f}×" for label, logs in sorted(self._logs.items())]
        return " ".join(parts)
