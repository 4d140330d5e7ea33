"""Files that survive a kill, written as a whole or line by line. Only regular files of a bounded size are read."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from specbench.errors import InputError
from specbench.records.typed import find_odd

DOCUMENT = 16 * 2**20  # bytes of the largest file that is one document: a run.json, a certificate
LINES = 4 * 2**30  # bytes of the largest file of lines
SPECIAL = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # half of a character outside the basic plane, or a lone one
UNLINKED = getattr(os, "O_NOFOLLOW", 0)
QUICKLY = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)  # opening a pipe would wait


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file to read bytes.

    Raises InputError for a pipe, a device or a folder, and for a file that does not exist.
    """
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
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise InputError(f"{path}: holds more than {most:,} bytes")
        return file.read(size)  # a larger number would be allocated


def read_text(path: Path, most: int = DOCUMENT) -> str:
    """Return a regular file's text. Raises InputError for what is not UTF-8, a byte order mark included."""
    try:
        text = read_bytes(path, most).decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}") from None
    if text.startswith("\N{ZERO WIDTH NO-BREAK SPACE}"):
        raise InputError(f"{path}: starts with a byte order mark; save it as UTF-8 without one")
    return text


def read_object(path: Path) -> dict[str, Any]:
    """Return a regular file's JSON object. Raises InputError naming the file, as `read_text` and `parse_object`."""
    text = read_text(path)
    try:
        return parse_object(text)
    except InputError as problem:
        raise InputError(f"{path}: {problem}") from None


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

    def append(self, *rows: Mapping[str, Any]) -> None:
        """Write lines in one go and wait until they are on disk. Raises InputError where the file is a link or no file."""
        lines = [json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n" for row in rows]
        with self._open_to_append() as file:
            file.write("".join(lines).encode())
            file.flush()
            os.fsync(file.fileno())

    def read_numbered(self, torn: bool = True) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (line number, row), without blank lines. Raises InputError on a broken line, unless it is a torn last one."""
        lines = self._read_lines()
        for number, line in enumerate(lines, start=1):
            if not line.strip() or (torn and number == len(lines) and _is_torn(line)):
                continue
            try:
                yield number, parse_object(line)
            except InputError as problem:
                raise InputError(f"{self.path}:{number}: {problem}") from None

    def repair(self) -> None:
        """Cut off a torn last line, so that the next append starts a new line."""
        *_, last = self._read_lines() or [b""]
        if not last or (last.endswith(b"\n") and last.strip()):
            return
        with self._open_to_append() as file:
            if _is_torn(last):
                file.truncate(file.seek(0, os.SEEK_END) - len(last))
            else:
                file.write(b"\n")

    def drop_last(self, count: int) -> None:
        """Cut off the last lines, which must be complete."""
        size = sum(map(len, self._read_lines()[-count:])) if count else 0
        with self._open_to_append() as file:
            file.truncate(file.seek(0, os.SEEK_END) - size)

    def _read_lines(self) -> list[bytes]:
        return read_bytes(self.path).splitlines(keepends=True) if os.path.lexists(self.path) else []

    def _open_to_append(self) -> BinaryIO:
        """Open the file itself, never the target of a link: the folder may come from somebody else."""
        try:
            handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | QUICKLY | UNLINKED, 0o644)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
                raise InputError(f"{self.path}: a link, a pipe or a folder, so nothing is written there") from None
            raise
        file = os.fdopen(handle, "ab")
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            file.close()
            raise InputError(f"{self.path}: not a file, so nothing is written there")
        return file


def _is_torn(line: bytes) -> bool:
    """Return whether a last line was cut off while it was written: it has no line end and is not a JSON object."""
    if line.endswith(b"\n"):
        return not line.strip()
    try:
        return not isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return True


def parse_object(content: bytes | str) -> dict[str, Any]:
    """Parse a JSON object. Raises InputError for anything else, and for what readers of JSON understand differently.

    Namely: duplicate keys, NaN, lone surrogates, deep nesting, a byte order mark.
    """
    try:
        text = content if isinstance(content, str) else content.decode()
        row = json.loads(text, object_pairs_hook=_build_unique, parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise InputError("nested too deeply") from None
    except ValueError:
        raise InputError("not a JSON object") from None
    if not isinstance(row, dict):
        raise InputError("not a JSON object")
    if SURROGATE.search(text) and (odd := find_odd(row)):
        raise InputError(odd)
    return row


def _build_unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise InputError(f"the key {twice!a} is given twice")
    return row


def _refuse_constant(name: str) -> None:
    raise InputError(f"{name} is not a number")
