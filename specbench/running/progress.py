"""Progress displays, on stderr: what is running, how much is left, and how fast or how good it is so far."""

import math
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from specbench.errors import RECORD, escape_controls
from specbench.records.trial import BASELINE, QuestionId, Trial

D = TypeVar("D", bound="Display")
NAMED_AFTER = 10.0  # seconds after which a stage is named outside a terminal; most are over before


class Screen(Console):
    """The console of what is said beside results. That nobody reads it does not stop a run."""

    def on_broken_pipe(self) -> None:
        self.quiet = True

    def print(self, *objects: Any, **options: Any) -> None:
        with suppress(OSError):
            super().print(*objects, **options)


screen = Screen(stderr=True, markup=False, emoji=False)  # quiet: nothing is drawn or said


@contextmanager
def mute(quiet: bool) -> Iterator[None]:
    """Draw and say nothing on the screen meanwhile, if quiet."""
    before, screen.quiet = screen.quiet, quiet
    try:
        yield
    finally:
        screen.quiet = before


def say(console: Console, line: str) -> None:
    """Print a line as it is, and record it for a log."""
    line = escape_controls(line)
    console.print(line, markup=False, highlight=False, soft_wrap=True)
    RECORD.info(line)


class _Bar(Progress):
    """A progress bar, with the speeds on a line of their own below."""

    speeds = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        if self.speeds:
            yield Text(self.speeds)


class Display:
    """A bar in a terminal; elsewhere, and in a log, a line every `every` seconds, and a last one.

    A thread says that time passes, once a second, while nothing is timed: a thread that draws would take time from that.
    """

    def __init__(self, console: Console = screen, every: float = 30.0, stage: str = "loading") -> None:
        self.console = console
        self.every = every
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        remaining = (TextColumn("left:"), TimeRemainingColumn())
        shown = console.is_terminal and not console.quiet
        self._bar = _Bar(*columns, *remaining, console=console, disable=not shown, auto_refresh=False)
        self._task = self._bar.add_task(stage, total=None)
        self._printed = time.monotonic()  # when the last line was printed
        self._stage = self._text = stage  # what is running, and what is shown of it
        self._begun, self._named = time.monotonic(), False
        self._timed, self._ended = False, threading.Event()
        self._ticker = threading.Thread(target=self._tick, name="progress", daemon=True)

    def __enter__(self: D) -> D:
        self._bar.start()
        self._ticker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._ticker.join()
        self._bar.stop()

    def show_status(self, what: str, timed: bool = False) -> None:
        """Show what is running."""
        self._stage = self._text = what
        self._begun, self._named, self._timed = time.monotonic(), False, timed
        self._bar.update(self._task, description=what, refresh=True)
        if timed and self._begun - self._printed >= NAMED_AFTER:
            self._name_stage()

    def announce(self, lines: list[str]) -> None:
        for line in lines:
            self._print_line(line)

    def _tick(self) -> None:
        while not self._ended.wait(1.0):
            if not self._timed:
                self._show_time(time.monotonic() - self._begun)

    def _show_time(self, seconds: float) -> None:
        """Show how long the stage has taken."""
        text = f"{self._text} · {seconds:.0f} s"
        self._bar.update(self._task, description=text, refresh=True)
        if not self._named and seconds >= NAMED_AFTER:
            self._name_stage()
        else:
            self._print_due(text, last=False)

    def _name_stage(self) -> None:
        self._named = True
        self._print_milestone(self._stage)

    def _print_line(self, line: str) -> None:
        self._printed = time.monotonic()
        say(self.console, line)

    def _print_milestone(self, line: str) -> None:
        """Say what a terminal's bar shows."""
        if self.console.is_terminal:
            self._printed = time.monotonic()
            RECORD.info(escape_controls(line))
        else:
            self._print_line(line)

    def _print_due(self, line: str, last: bool) -> None:
        if last or time.monotonic() - self._printed > self.every:
            self._print_milestone(line)


class ProgressDisplay(Display):
    """The display of a run."""

    def __init__(self, console: Console = screen, every: float = 30.0) -> None:
        super().__init__(console, every)
        self._seconds: dict[tuple[int, QuestionId, int], dict[str, float]] = defaultdict(dict)
        self._logs: dict[str, list[float]] = defaultdict(list)
        self._failures: Counter[str] = Counter()
        self._total = self._done = 0
        self.run: Path | None = None  # its directory, once that is known

    def begin(self, run: Path, total: int, done: int) -> None:
        self._total = total
        self._done = done
        self._bar.reset(self._task, total=total, completed=done)
        self.show_status("starting")
        self._print_line(f"{run}: {total} turns" + (f", {done} of them done" if done else ""))

    def set_run(self, run: Path) -> None:
        self.run = run

    def add_trial(self, trial: Trial) -> None:
        self._timed = True
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


class TrainingDisplay(Display):
    """The display of a training, with its loss and the accuracy by depth, and of other long jobs."""

    _first = 0  # what was done when the part of the job began

    def update(self, what: str, done: int, of: int | None, row: Mapping[str, Any] | None = None) -> None:
        """Show how far the job is; a `Watch`."""
        if what != self._stage:
            self._stage, self._begun, self._named, self._first = what, time.monotonic(), False, done
            self._timed = False
            self._bar.reset(self._task, total=of, completed=done)
        if row:
            shares = " ".join(f"{100 * share:.0f}" for share in row["held_out_right"])
            what = f"{what} · held-out loss {row['held_out_loss']:.3f}, right by depth {shares} %"
        self._text = what
        self._bar.update(self._task, description=what, completed=done, total=of, refresh=True)
        self._print_due(f"{done}{f'/{of}' if of is not None else ''} · {what}{self._format_left(done, of)}", done == of)

    def _format_left(self, done: int, of: int | None) -> str:
        """Return the minutes that are left at the speed so far, if they can be known and are at least one."""
        if of is None or done <= self._first:
            return ""
        minutes = (of - done) * (time.monotonic() - self._begun) / (done - self._first) / 60
        return f" · about {minutes:.0f} min left" if minutes >= 1 else ""
