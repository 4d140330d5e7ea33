"""Progress displays: what is running, how much is left, and how fast or how good it is so far."""

import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from specbench.errors import escape_controls
from specbench.records.trial import BASELINE, QuestionId, Trial

D = TypeVar("D", bound="_Display")


class _Bar(Progress):
    """A progress bar, with the speeds on a line of their own below."""

    speeds = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        if self.speeds:
            yield Text(self.speeds)


class _Display:
    """A bar in a terminal; elsewhere a line every `every` seconds, and a last one."""

    def __init__(self, console: Console, every: float = 30.0, auto_refresh: bool = True) -> None:
        self.console = console
        self.every = every
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        remaining = (TextColumn("left:"), TimeRemainingColumn())
        self._bar = _Bar(*columns, *remaining, console=console, disable=not console.is_terminal, auto_refresh=auto_refresh)
        self._task = self._bar.add_task("loading", total=None)
        self._printed = 0.0  # when the last of those lines was printed

    def __enter__(self: D) -> D:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def _print_line(self, line: str) -> None:
        self.console.print(escape_controls(line), markup=False, highlight=False, soft_wrap=True)

    def _print_due(self, line: str, last: bool) -> None:
        if not self.console.is_terminal and (last or time.monotonic() - self._printed > self.every):
            self._printed = time.monotonic()
            self._print_line(line)


class ProgressDisplay(_Display):
    """The display of a run.

    It draws between turns only: a thread that draws while the clock runs would take time from what is measured.
    """

    def __init__(self, console: Console, every: float = 30.0) -> None:
        super().__init__(console, every, auto_refresh=False)
        self._seconds: dict[tuple[int, QuestionId, int], dict[str, float]] = defaultdict(dict)
        self._logs: dict[str, list[float]] = defaultdict(list)
        self._failures: Counter[str] = Counter()
        self._total = self._done = 0
        self.run: Path | None = None  # its directory, once that is known

    def begin(self, run: Path, total: int, done: int) -> None:
        self._total = total
        self._done = done
        self._printed = time.monotonic()
        self._bar.reset(self._task, total=total, completed=done, description="starting")
        self._print_line(f"{run}: {total} turns" + (f", {done} of them done" if done else ""))

    def set_run(self, run: Path) -> None:
        self.run = run

    def announce(self, lines: list[str]) -> None:
        for line in lines:
            self._print_line(line)

    def show_status(self, what: str, long: bool = False) -> None:
        self._bar.update(self._task, description=what, refresh=True)
        if long and not self.console.is_terminal:
            self._print_line(what)

    def add_trial(self, trial: Trial) -> None:
        if trial.attempt > 1:
            self._bar.update(self._task, description=f"repeat {trial.repeat + 1} · {trial.task} · again", refresh=True)
            return
        self._done += 1
        self._update_speeds(trial)
        self._bar.speeds = self._format_speeds()
        where = f"repeat {trial.repeat + 1} · {trial.task}"
        self._bar.update(self._task, completed=self._done, description=where, refresh=True)
        self._print_due(f"{self._done}/{self._total} turns · {where} · {self._format_speeds()}", self._done == self._total)

    def _update_speeds(self, trial: Trial) -> None:
        """Add the speedups that a trial completes. They are rough; the report computes the real ones."""
        if trial.failed:
            self._failures[trial.method] += 1
            if self._failures[trial.method] == 1:  # the others are only counted
                self._print_line(f"{trial.method} failed on question {trial.question_id}: {trial.error}")
            return
        block = self._seconds[(trial.repeat, trial.question_id, trial.turn)]
        block[trial.method] = ((trial.prefill_s or 0) + (trial.decode_s or 0)) / trial.new_tokens
        new = block if trial.method == BASELINE else {trial.method: block[trial.method]}
        for label, seconds in new.items():
            if BASELINE in block and label != BASELINE:
                self._logs[label].append(math.log(block[BASELINE] / seconds))

    def _format_speeds(self) -> str:
        speeds = [f"{label} {math.exp(sum(logs) / len(logs)):.2f}×" for label, logs in sorted(self._logs.items())]
        return "  ".join([*speeds, *(f"{label}: {failed} failed" for label, failed in sorted(self._failures.items()))])


class TrainingDisplay(_Display):
    """The display of a training, with its loss and the accuracy by depth, and of other long jobs."""

    def __init__(self, console: Console, every: float = 30.0) -> None:
        super().__init__(console, every)
        self._what, self._begun, self._first = "", 0.0, 0  # the part of the job that runs, when it began, and what was done then

    def update(self, what: str, done: int, of: int | None, row: Mapping[str, Any] | None = None) -> None:
        """Show how far the job is; a `Watch`."""
        if what != self._what:
            self._what, self._begun, self._first = what, time.monotonic(), done
            self._bar.reset(self._task, total=of, completed=done)
        if row:
            shares = " ".join(f"{100 * share:.0f}" for share in row["held_out_right"])
            what = f"{what} · held-out loss {row['held_out_loss']:.3f}, right by depth {shares} %"
        self._bar.update(self._task, description=what, completed=done, total=of)
        self._print_due(f"{done}{f'/{of}' if of is not None else ''} · {what}{self._format_left(done, of)}", done == of)

    def _format_left(self, done: int, of: int | None) -> str:
        """Return the minutes that are left at the speed so far, if they can be known and are at least one."""
        if of is None or done <= self._first:
            return ""
        minutes = (of - done) * (time.monotonic() - self._begun) / (done - self._first) / 60
        return f" · about {minutes:.0f} min left" if minutes >= 1 else ""
