"""The nearest valid choice, for messages about bad input."""

import difflib
from collections.abc import Sequence


def nearest(given: str, choices: Sequence[str]) -> str:
    """`a, b or c`, the likeliest meaning first when there is one; empty without choices."""
    close = difflib.get_close_matches(str(given), choices, n=1)
    ordered = close + [choice for choice in choices if choice not in close]
    return ", ".join(ordered[:-1]) + (" or " if len(ordered) > 1 else "") + ordered[-1] if ordered else ""


def closest(given: str, choices: Sequence[str]) -> str:
    """The one choice that looks most like what was given."""
    return difflib.get_close_matches(given, choices, n=1, cutoff=0)[0]
