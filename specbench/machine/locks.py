"""Locks on a run directory and on a timed device. The system frees them when their process ends, however that comes about."""

import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from specbench.errors import InputError
from specbench.records.run_directory import RunDirectory

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

WAITING = "waiting for another run on this device"


@contextmanager
def alone(run: RunDirectory) -> Iterator[None]:
    """Raises InputError while another process writes there."""

    def refuse() -> None:
        raise InputError(f"out={run.path}: another process is writing there; wait for it, or choose another out")

    run.path.mkdir(parents=True, exist_ok=True)
    with locked(run.path, refuse):
        yield


@contextmanager
def sole_timer(devices: Iterable[str], waiting: Callable[[], None]) -> Iterator[None]:
    """Waits, after saying so, while another process of this machine times on one of them: two would measure each other."""
    with ExitStack() as held:
        for device in sorted(set(devices)):  # in one order, so that no two processes wait for each other
            name = f"specbench-{re.sub(r'[^A-Za-z0-9]+', '-', device)}.lock"
            held.enter_context(locked(Path(tempfile.gettempdir()) / name, waiting))
        yield


@contextmanager
def locked(path: Path, taken: Callable[[], None]) -> Iterator[None]:
    """A folder or a file, made where there is none. Waits while another process holds it, unless `taken` raises."""
    if fcntl is None:
        yield
        return
    file = None
    with suppress(OSError):  # another user's, which can be locked all the same
        path.touch()
    with suppress(OSError):  # may not be read
        file = os.open(path, os.O_RDONLY)
    try:
        if file is not None:
            _take(file, taken)
        yield
    finally:
        if file is not None:
            os.close(file)


def _take(file: int, taken: Callable[[], None]) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        taken()
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:  # a file system without locks
        return
