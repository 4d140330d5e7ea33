"""Your own questions: a JSONL file in Spec-Bench's schema (`suite=jsonl suite.path=FILE`)."""

from __future__ import annotations

import hashlib
from pathlib import Path

from specbench.errors import InputError
from tasks.question import Question, read_questions
from tasks.suite import Suite


class Jsonl(Suite):
    """The questions of one file. Raises InputError if it does not have the sha256 given."""

    def __init__(self, path: str | None, sha256: str | None = None, name: str = "jsonl") -> None:
        if path is None:
            raise InputError(f"suite {name} needs a questions file: give suite.path=FILE")
        self.path = Path(path).expanduser()
        self.name = name
        self.fingerprint = hash_file(self.path)
        if sha256 is not None and self.fingerprint != sha256:
            raise InputError(
                f"{path}: sha256 is {self.fingerprint}, expected {sha256}; "
                "give that file as suite.path=FILE, or suite.sha256=null to read this one"
            )

    def questions(self) -> list[Question]:
        """Return all questions in file order. Raises InputError (file:line)."""
        return read_questions(self.path)


def hash_file(path: Path) -> str:
    """Return the file's sha256 in hex. Raises InputError if it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
