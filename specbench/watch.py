"""Protocols for watching a job, implemented by progress displays."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from specbench.records.trial import Trial


class Watcher(Protocol):
    """Watches a run."""

    def set_run(self, run: Path) -> None:
        """The run directory is known, and locked for this process."""

    def show_status(self, what: str, timed: bool = False) -> None:
        """Something other than a trial is running; timed: its time is taken, so nothing is drawn until the next call."""

    def announce(self, lines: list[str]) -> None:
        """There is something to say, such as what the run needs."""

    def begin(self, run: Path, total: int, done: int) -> None:
        """The run has `total` turns; `done` of them are on disk."""

    def add_trial(self, trial: "Trial") -> None:
        """One more turn is on disk. Turns of later attempts do not count towards the run's total."""


class Watch(Protocol):
    """Called with the progress of a long job. of: None if the total is unknown; row: the latest line of the job's log."""

    def __call__(self, what: str, done: int, of: int | None, row: Mapping[str, Any] | None = None, /) -> None: ...
