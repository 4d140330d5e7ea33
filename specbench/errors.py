"""The one exception of bad input, and any other exception in one line."""

import difflib
import sys
from collections.abc import Sequence
from pathlib import Path


class InputError(Exception):
    """A user's mistake: one line on stderr, exit status 2."""


def refuse(error: InputError) -> int:
    """Say what is wrong, in one line on stderr; the exit status that goes with it."""
    warn(str(error))
    return 2


def warn(message: str) -> None:
    """Say it in one line on stderr."""
    print(f"specbench: {' '.join(message.split())}", file=sys.stderr)


def format_error(error: BaseException, longest: int = 500) -> str:
    """What went wrong and in which line of which file, for whoever wrote that code; no folder of this machine."""
    text = " ".join(str(error).split()).replace(str(Path.home()), "~")
    return f"{type(error).__name__}: {text[:longest]}{_locate_error(error)}"


def _locate_error(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return f" ({Path(error.filename or '').name}:{error.lineno})"
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f" ({Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno})" if trace else ""


def abbreviate(names: list[str], most: int = 3) -> str:
    """The first of many names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def suggest_choices(given: str, choices: Sequence[str]) -> str:
    """`a, b or c`, the likeliest meaning first when there is one; empty without choices."""
    close = difflib.get_close_matches(str(given), choices, n=1)
    ordered = close + [choice for choice in choices if choice not in close]
    return ", ".join(ordered[:-1]) + (" or " if len(ordered) > 1 else "") + ordered[-1] if ordered else ""


def find_closest(given: str, choices: Sequence[str]) -> str:
    """The one choice that looks most like what was given."""
    return difflib.get_close_matches(given, choices, n=1, cutoff=0)[0]
