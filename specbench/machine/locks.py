"""Locks on a run directory and on a timed device. The system frees them when their process ends, however that comes about."""

import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import lock_descriptor  # FileLock refuses another user's file in a folder like /tmp

from specbench.errors import InputError, warn

WAITING = "waiting for another run on this device"
SAFELY = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # whatever comes to lie there meanwhile


@contextmanager
def lock_run(folder: Path) -> Iterator[None]:
    """Raises InputError while another process writes into the folder, a run's or a certificate's."""

    def refuse() -> None:
        raise InputError(f"out={folder}: another process is writing there; wait for it, or choose another out")

    folder.mkdir(parents=True, exist_ok=True)
    with hold_lock(folder / ".lock", refuse, "choose another out"):
        yield


@contextmanager
def lock_devices(devices: Iterable[str], waiting: Callable[[], None]) -> Iterator[None]:
    """Waits, after saying so, while another process of this machine times on one of them: two would measure each other."""
    with ExitStack() as held:
        for device in sorted(set(devices)):  # in one order, so that no two processes wait for each other
            path = Path(tempfile.gettempdir()) / f"specbench-{re.sub(r'[^A-Za-z0-9]+', '-', device)}.lock"
            held.enter_context(hold_lock(path, waiting, "set TMPDIR to another folder", shared=True))
        yield


@contextmanager
def hold_lock(path: Path, taken: Callable[[], None], elsewhere: str, shared: bool = False) -> Iterator[None]:
    """A file, made where there is none and left there. Waits while another process holds it, unless `taken` raises.

    elsewhere: what to do, in words, where the file cannot be had. shared: other users lock it too.
    """
    _make_file(path, elsewhere, shared)
    file = _open_file(path, elsewhere)
    try:
        if not _acquire(path, file):
            taken()
            lock_descriptor(file)
        yield
    finally:
        os.close(file)


def _make_file(path: Path, elsewhere: str, shared: bool) -> None:
    """Leaves alone what is there."""
    try:
        with path.open("x") as file, suppress(AttributeError, OSError):  # Windows, and file systems without modes
            if shared:
                os.fchmod(file.fileno(), 0o666)
    except FileExistsError:
        return
    except OSError as error:
        raise InputError(f"{path}: no lock can be made there: {error.strerror}; {elsewhere}") from None


def _open_file(path: Path, elsewhere: str) -> int:
    """Raises InputError for what is no file, such as a pipe or a link, and for what may not be opened."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise InputError(f"{path}: not a file, so it cannot be a lock; remove it, or {elsewhere}")
        flags = os.O_RDWR if os.access(path, os.W_OK) else os.O_RDONLY  # another user's can be locked all the same
        return os.open(path, flags | SAFELY)
    except OSError as error:
        raise InputError(f"{path}: cannot be opened: {error.strerror}; remove it, or {elsewhere}") from None


def _acquire(path: Path, file: int) -> bool:
    """Whether it is ours now. A file system without locks lets everyone go on, who then is told of it."""
    try:
        return lock_descriptor(file, blocking=False)
    except OSError as error:
        warn(f"{path}: cannot be locked ({error.strerror}): nothing keeps another process away")
        return True
