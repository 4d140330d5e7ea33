"""Locks on a run directory and on a timed device. The system frees them when their process ends, even if it is killed."""

import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

from filelock import lock_descriptor  # FileLock refuses another user's file in a folder like /tmp

from specbench.errors import InputError, warn

SAFELY = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)  # no link, no waiting pipe
REMEDY = "set TMPDIR to another folder"


@contextmanager
def lock_run(folder: Path) -> Iterator[None]:
    """Lock the folder of a run or a certificate. Raises InputError while another process writes there."""

    def refuse() -> None:
        raise InputError(f"out={folder}: another process is writing there; wait for it, or choose another out")

    folder.mkdir(parents=True, exist_ok=True)
    with hold_lock(folder / ".lock", refuse, "choose another out"):
        yield


@contextmanager
def lock_devices(devices: Iterable[str], on_wait: Callable[[str], None]) -> Iterator[None]:
    """Lock devices for timing.

    While another process of this machine times on one of them, call `on_wait` with a message and wait.
    """
    with ExitStack() as held:
        for device in sorted(set(devices)):  # in a fixed order, so that no two processes wait for each other
            path = Path(tempfile.gettempdir()) / f"specbench-{re.sub(r'[^A-Za-z0-9]+', '-', device)}.lock"
            waiting = f"waiting for another run on this device, which holds {path} (TMPDIR names its folder)"
            held.enter_context(hold_lock(path, partial(on_wait, waiting), REMEDY, shared=True))
        yield


@contextmanager
def hold_lock(path: Path, on_wait: Callable[[], None], remedy: str, shared: bool = False) -> Iterator[None]:
    """Lock a file, creating it if needed. While another process holds it, call `on_wait` and, unless that raises, wait.

    remedy: what to do, in words, if the file cannot be used. shared: other users lock it too.
    """
    _create_file(path, remedy, shared)
    file = _open_file(path, remedy)
    try:
        if not _acquire(path, file):
            on_wait()
            lock_descriptor(file)
        yield
    finally:
        os.close(file)


def _create_file(path: Path, remedy: str, shared: bool) -> None:
    try:
        with path.open("x") as file, suppress(AttributeError, OSError):  # Windows, and file systems without modes
            if shared:
                os.fchmod(file.fileno(), 0o666)
    except FileExistsError:
        return
    except OSError as error:
        raise InputError(f"{path}: the lock cannot be created: {error.strerror}; {remedy}") from None


def _open_file(path: Path, remedy: str) -> int:
    """Raise InputError for anything but a file, such as a pipe or a link, and if it may not be opened."""
    try:
        _check_regular(path.lstat(), path, remedy)
        flags = os.O_RDWR if os.access(path, os.W_OK) else os.O_RDONLY  # another user's file can be locked too
        file = os.open(path, flags | SAFELY)
        _check_regular(os.fstat(file), path, remedy)  # it may have been replaced meanwhile
        return file
    except OSError as error:
        raise InputError(f"{path}: cannot be opened: {error.strerror}; remove it, or {remedy}") from None


def _check_regular(found: os.stat_result, path: Path, remedy: str) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{path}: not a file, so it cannot be a lock; remove it, or {remedy}")


def _acquire(path: Path, file: int) -> bool:
    """Return whether the lock is ours now. On a file system without locks it always is, with a warning."""
    try:
        return lock_descriptor(file, blocking=False)
    except OSError as error:
        warn(f"{path}: cannot be locked ({error.strerror}): other processes are not kept out")
        return True
