"""Files that survive a kill: written as a whole, or line by line. What is read must be a regular file of a bounded size."""

from __future__ import annotations

import json
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from specbench.errors import InputError

DOCUMENT = 16 * 2**20  # bytes of the largest file that is one document: a run.json, a certificate
LINES = 4 * 2**30  # bytes of the largest file of lines
SPECIAL = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}
QUICKLY = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)  # opening a pipe would wait


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file to read bytes. Raises InputError for a pipe, a device or a folder, and for a file that is not there."""
    try:
        handle = os.open(path, os.O_RDONLY | QUICKLY)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise InputError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    kind = stat.S_IFMT(os.fstat(handle).st_mode)
    if kind != stat.S_IFREG:
        os.close(handle)
        raise InputError(f"{path}: expected a file, found {SPECIAL.get(kind, 'something else')}")
    return os.fdopen(handle, "rb")


def read_bytes(path: Path, most: int = LINES) -> bytes:
    """Return a regular file's content. Raises InputError for anything else, and for more than `most` bytes."""
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise InputError(f"{path}: holds more than {most:,} bytes")
    return content


def read_text(path: Path, most: int = DOCUMENT) -> str:
    """Return a regular file's text. Raises InputError for what is not UTF-8, a byte order mark included."""
    try:
        text = read_bytes(path, most).decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}") from None
    if text.startswith("\N{ZERO WIDTH NO-BREAK SPACE}"):
        raise InputError(f"{path}: starts with a byte order mark; save it as UTF-8 without one")
    return text


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write the whole file or nothing: under a temporary name in the same directory, synced, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


class JsonLines:
    """A file with one JSON object per line, whose last line may be torn by a kill."""

    def __init__(self, path: Path):
        self.path = path

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one line and wait until it is on disk."""
        line = json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"
        with self.path.open("ab") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())

    def read_numbered(self, torn: bool = True) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (line number, row), without blank lines. Raises InputError on a broken line, unless it is a torn last one."""
        lines = self._read_lines()
        for number, line in enumerate(lines, start=1):
            row = _parse(line)
            if row is not None:
                yield number, row
            elif line.strip() and not (torn and number == len(lines)):
                raise InputError(f"{self.path}:{number}: not a JSON object")

    def repair(self) -> None:
        """Cut off a torn last line, so that the next append starts a new line."""
        lines = self._read_lines()
        if not lines:
            return
        if _parse(lines[-1]) is None:
            os.truncate(self.path, self.path.stat().st_size - len(lines[-1]))
        elif not lines[-1].endswith(b"\n"):
            with self.path.open("ab") as file:
                file.write(b"\n")

    def _read_lines(self) -> list[bytes]:
        return read_bytes(self.path).splitlines(keepends=True) if self.path.exists() else []


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:  # JSONDecodeError and UnicodeDecodeError are both ValueErrors
        return None
    return row if isinstance(row, dict) else None
