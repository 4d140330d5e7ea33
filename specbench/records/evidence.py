"""How much evidence a certificate has: in figures, and in the word `exact`, which requires enough."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CONFIDENCE = 0.95
MOST_WRONG = 0.2  # `exact`: enough correct texts to exclude a larger rate of wrong ones; 14 suffice
LEAST_TOKENS = 64  # `exact`: tokens of the longest of them
EXACT, SO_FAR = "exact", "exact so far"


@dataclass(frozen=True)
class Evidence:
    """texts: compared token by token; tokens: of the longest, 0 if unknown; draws: on a miniature target, without texts."""

    texts: int
    tokens: int
    draws: int = 0

    @property
    def most_wrong(self) -> float:
        """The upper limit of the rate of wrong texts, if none was wrong (Clopper & Pearson 1934, one-sided)."""
        return float(1 - (1 - CONFIDENCE) ** (1 / self.texts)) if self.texts else 1.0

    def weigh(self, class_: str) -> str:
        """Return the word for a verdict's class that the evidence supports."""
        if class_ not in (EXACT, SO_FAR):
            return class_
        return EXACT if self.most_wrong <= MOST_WRONG and self.tokens >= LEAST_TOKENS else SO_FAR

    @property
    def short(self) -> str:
        """For a table's cell."""
        return f"{self.texts} texts" if self.texts else f"{self.draws} draws" if self.draws else "no text"

    def __str__(self) -> str:
        if self.texts:
            return f"{self.texts} texts of {describe_length(self.tokens)}"
        return f"{self.draws} draws on a miniature target" if self.draws else "no texts"


def describe_length(tokens: float) -> str:
    """Return how long texts were. tokens: of the longest, 0 if unknown."""
    return f"at most {tokens:.0f} tokens" if tokens else "unknown length"


def read_evidence(tests: Mapping[str, Any]) -> Evidence:
    """Return the evidence of a verdict's tests. Older certificates do not say how long their texts were."""
    texts = tests.get("texts") or {}
    draws = [test["draws"] for test in tests.get("enumerated_again") or tests.get("enumerated") or ()]
    return Evidence(texts.get("texts", 0), texts.get("longest", 0), max(draws, default=0))
