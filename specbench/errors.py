"""The exception for bad input, and the words that error messages share."""

import difflib
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")  # without tab and newline


class InputError(Exception):
    """A user's mistake: reported in one line on stderr, with exit status 2."""


def refuse(error: InputError) -> int:
    """Print a mistake in one line on stderr, and return its exit status."""
    warn(str(error))
    return 2


def warn(message: str) -> None:
    """Print a message in one line on stderr."""
    print(f"specbench: {escape_controls(' '.join(message.split()))}", file=sys.stderr)


def escape_controls(text: str) -> str:
    """Return the text with control characters and lone surrogates escaped: they could command the terminal, or stop the print."""
    return CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def format_error(error: BaseException, longest: int = 500) -> str:
    """Return the error's type, text, file and line, for the author of that code; without folders of this machine."""
    text = escape_controls(" ".join(str(error).split())).replace(str(Path.home()), "~")
    return f"{type(error).__name__}: {text[:longest]}{_locate_error(error)}"


def _locate_error(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return f" ({Path(error.filename or '').name}:{error.lineno})"
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""


def abbreviate(names: list[str], most: int = 3) -> str:
    """Join the first few names, and say how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def suggest_choices(given: str, choices: Sequence[str]) -> str:
    """Return `a, b or c`, the choice closest to what was given first; empty without choices."""
    close = difflib.get_close_matches(str(given), choices, n=1)
    ordered = close + [choice for choice in choices if choice not in close]
    return ", ".join(ordered[:-1]) + (" or " if len(ordered) > 1 else "") + ordered[-1] if ordered else ""


def find_closest(given: str, choices: Sequence[str]) -> str:
    """Return the choice closest to what was given."""
    return difflib.get_close_matches(given, choices, n=1, cutoff=0)[0]
