"""The interface of a suite of questions."""

from __future__ import annotations

from abc import ABC, abstractmethod

from tasks.question import Question


class Suite(ABC):
    """A named set of questions. `fingerprint` is the sha256 of its data and ties a run to its questions."""

    name: str
    fingerprint: str

    @abstractmethod
    def questions(self) -> list[Question]:
        """Return all questions in the suite's order. Raises InputError for bad data."""

    def score(self, question: Question, turn: int, text: str) -> float | None:
        """Return the accuracy in [0, 1] of the answer `text` to turn `turn` (from 0); None: not scored."""
        return None
