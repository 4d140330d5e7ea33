"""Who looks on while a job goes: the protocols that progress displays implement."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from specbench.records.trial import Trial


class Watcher(Protocol):
    """Who looks on while a run goes: the progress display."""

    def set_run(self, run: Path) -> None:
        """The run directory is known, and locked for this process."""

    def show_status(self, what: str, long: bool = False) -> None:
        """Something else than trials; long: more than a few seconds."""

    def begin(self, run: Path, total: int, done: int) -> None:
        """`total` turns are wanted, `done` of them are there."""

    def add_trial(self, trial: "Trial") -> None:
        """One more turn is on disk."""


class Watch(Protocol):
    """Told how far a long job is. of: None where nobody knows; row: the latest line of its log, where there is one."""

    def __call__(self, what: str, done: int, of: int | None, row: Mapping[str, Any] | None = None, /) -> None: ...
