"""Compare an answer with its reference, where a few lines of code can do so without running or judging anything."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal

NUMBER = re.compile(r"(?:(?<![\w)])-)?\d[\d,]*(?:\.\d+)?")
BOXED = r"\boxed{"
SPACING = re.compile(r"\\left|\\right|\\[!,;: ]|\s|\$")  # of LaTeX: what does not change the value


def compare_number(reference: str, text: str) -> bool:
    """Return whether the last number of the answer is that of the reference, as GSM8K is scored if the format is free."""
    expected = _find_number(reference)
    return expected is not None and _find_number(text) == expected


def compare_boxed(reference: str, text: str) -> bool:
    r"""Return whether the answer's last \boxed{…} equals the reference apart from spacing; any other form counts as wrong."""
    return _normalise(_find_boxed(text)) == _normalise(reference)


COMPARE: dict[str, Callable[[str, str], bool]] = {"number": compare_number, "boxed": compare_boxed}


def _find_number(text: str) -> Decimal | None:
    numbers = NUMBER.findall(text)
    return Decimal(numbers[-1].replace(",", "")) if numbers else None


def _find_boxed(text: str) -> str:
    """Return what the last box holds, with its inner braces; empty without a complete box."""
    _, found, rest = text.rpartition(BOXED)
    depth = 1
    for end, char in enumerate(rest if found else ""):
        depth += {"{": 1, "}": -1}.get(char, 0)
        if depth == 0:
            return rest[:end]
    return ""


def _normalise(latex: str) -> str:
    plain = SPACING.sub("", latex).rstrip(".")
    return re.sub(r"\\[dt]frac", r"\\frac", plain)
