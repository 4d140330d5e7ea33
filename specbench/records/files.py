"""Files that survive a kill: written as a whole, or line by line."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from specbench.errors import InputError


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
        return self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:  # JSONDecodeError and UnicodeDecodeError are both ValueErrors
        return None
    return row if isinstance(row, dict) else None
