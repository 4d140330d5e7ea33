"""The display of a run: what runs, how many turns are left, how fast the methods are so far."""

import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from specbench.records.trial import BASELINE, QuestionId, Trial


class _Bar(Progress):
    """One line of progress, and under it the speeds, which may be long."""

    speeds = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        if self.speeds:
            yield Text(self.speeds)


class ProgressDisplay:
    """A bar in a terminal; elsewhere a line at the start, every `every` seconds and at the end.

    It is drawn between turns alone: a thread that draws while the clock runs would take its time from what is measured.
    """

    def __init__(self, console: Console, every: float = 30.0) -> None:
        self.console, self.every = console, every
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        left = (TextColumn("left:"), TimeRemainingColumn())
        self._bar = _Bar(*columns, *left, console=console, disable=not console.is_terminal, auto_refresh=False)
        self._task = self._bar.add_task("loading", total=None)
        self._seconds: dict[tuple[int, QuestionId, int], dict[str, float]] = defaultdict(dict)
        self._logs: dict[str, list[float]] = defaultdict(list)
        self._failures: Counter[str] = Counter()
        self._total = self._done = 0
        self.run: Path | None = None  # its directory, once that is known

    def __enter__(self) -> "ProgressDisplay":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def begin(self, run: Path, total: int, done: int) -> None:
        self._total, self._done = total, done
        self._said = time.monotonic()
        self._bar.reset(self._task, total=total, completed=done, description="starting")
        self._print_line(f"{run}: {total} turns" + (f", {done} of them are there" if done else ""))

    def set_run(self, run: Path) -> None:
        self.run = run

    def show_status(self, what: str, long: bool = False) -> None:
        self._bar.update(self._task, description=what, refresh=True)
        if long and not self.console.is_terminal:
            self._print_line(what)

    def add_trial(self, trial: Trial) -> None:
        self._done += 1
        self._update_speeds(trial)
        self._bar.speeds = self._format_speeds()
        where = f"repeat {trial.repeat + 1} · {trial.task}"
        self._bar.update(self._task, completed=self._done, description=where, refresh=True)
        if not self.console.is_terminal and (time.monotonic() - self._said > self.every or self._done == self._total):
            self._said = time.monotonic()
            self._print_line(f"{self._done}/{self._total} turns · {where} · {self._format_speeds()}")

    def _update_speeds(self, trial: Trial) -> None:
        """Speed ratios need both sides of a block; they are rough here, the report makes the real ones."""
        if trial.failed:
            self._record_failure(trial)
            return
        block = self._seconds[(trial.repeat, trial.question_id, trial.turn)]
        block[trial.method] = ((trial.prefill_s or 0) + (trial.decode_s or 0)) / trial.new_tokens
        fresh = block if trial.method == BASELINE else {trial.method: block[trial.method]}
        for label, seconds in fresh.items():
            if BASELINE in block and label != BASELINE:
                self._logs[label].append(math.log(block[BASELINE] / seconds))

    def _record_failure(self, trial: Trial) -> None:
        """Of each method the first failure is shown, then they are counted."""
        self._failures[trial.method] += 1
        if self._failures[trial.method] == 1:
            self._print_line(f"{trial.method} failed on question {trial.question_id}: {trial.error}")

    def _format_speeds(self) -> str:
        speeds = [f"{label} {math.exp(sum(logs) / len(logs)):.2f}×" for label, logs in sorted(self._logs.items())]
        return "  ".join([*speeds, *(f"{label}: {failed} failed" for label, failed in sorted(self._failures.items()))])

    def _print_line(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


class TrainingDisplay:
    """How far a training is, its loss, how often each depth guesses right; or a building. Elsewhere a line now and then."""

    def __init__(self, console: Console, every: float = 30.0) -> None:
        self.console, self.every, self._said = console, every, 0.0
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bar = Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task("loading", total=None)

    def __enter__(self) -> "TrainingDisplay":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, what: str, done: int, of: int | None, row: Mapping[str, Any] | None = None) -> None:
        """A `Watch`."""
        if row:
            shares = " ".join(f"{100 * share:.0f}" for share in row["held_out_right"])
            what = f"{what} · held-out loss {row['held_out_loss']:.3f}, right by depth {shares} %"
        self._bar.update(self._task, description=what, completed=done, total=of)
        if not self.console.is_terminal and (time.monotonic() - self._said > self.every or done == of):
            self._said = time.monotonic()
            self.console.print(
                f"{done}{f'/{of}' if of is not None else ''} · {what}", markup=False, highlight=False, soft_wrap=True
            )
