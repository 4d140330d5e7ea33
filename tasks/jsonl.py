"""Your own questions: a JSONL file in Spec-Bench's schema (`suite=jsonl suite.path=FILE`)."""

from __future__ import annotations

import hashlib
from pathlib import Path

from specbench import ROOT
from specbench.errors import InputError
from tasks.question import Question, parse_questions, read_file
from tasks.suite import Suite


class Jsonl(Suite):
    """The questions of one file. Raises InputError if it does not have the sha256 given.

    path: relative to the working directory, or else to the checkout.
    """

    def __init__(self, path: str | None, sha256: str | None = None, name: str = "jsonl") -> None:
        if path is None:
            raise InputError(f"suite {name} needs a questions file: give suite.path=FILE")
        given = Path(path).expanduser()
        ours = ROOT / given
        self.path, self.name = ours if ours.exists() and not given.exists() else given, name
        self._content = read_file(self.path)
        self.fingerprint = hashlib.sha256(self._content).hexdigest()
        if sha256 is not None and self.fingerprint != sha256:
            raise InputError(
                f"{path}: sha256 is {self.fingerprint}, expected {sha256}; "
                "give that file as suite.path=FILE, or set suite.sha256=null to read this one"
            )

    def questions(self) -> list[Question]:
        """Return all questions in file order. Raises InputError (file:line)."""
        return parse_questions(self._content, self.path)
