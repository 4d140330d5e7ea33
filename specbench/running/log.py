"""A run's log: everything that is said, appended to a file in plain text, a line with its time each."""

from __future__ import annotations

import logging
from pathlib import Path

from specbench.errors import RECORD, InputError

LINE, TIME = "%(asctime)s  %(message)s", "%Y-%m-%d %H:%M:%S"


class _Log(logging.FileHandler):
    """A file handler whose errors are raised: a full disk is said, not traced on stderr."""

    def handleError(self, record: logging.LogRecord) -> None:
        raise  # what `emit` has caught


def start_log(path: str | None) -> None:
    """Write down from now on what is said; nothing without a path. Raises InputError for a file that cannot be written."""
    if path is None:
        return
    file = Path(path).expanduser()
    if file.exists() and not file.is_file():
        raise InputError(f"log={path}: expected a file, but this is a folder or something else")
    if any(isinstance(handler, _Log) and Path(handler.baseFilename) == file.absolute() for handler in RECORD.handlers):
        return
    try:
        handler = _Log(file, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise InputError(f"log={path}: cannot be written: {error.strerror}") from None
    handler.setFormatter(logging.Formatter(LINE, TIME))
    RECORD.addHandler(handler)


def stop_logs() -> None:
    """Close all logs."""
    for handler in list(RECORD.handlers):
        RECORD.removeHandler(handler)
        handler.close()
