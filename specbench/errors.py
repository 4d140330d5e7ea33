"""The exception for bad input, and the words that error messages share."""

import difflib
import errno
import logging
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import IOBase
from pathlib import Path

CONTROL = re.compile(  # without tab and newline; the last two ranges turn the direction of writing
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)
SHOWN = 80  # characters of a value in a message
OUTPUT = "standard output"
FULL = ("No space left on device", "disk is full", "Disk quota exceeded", "file write failed", "unexpected pos")
UNUSABLE = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EFBIG, errno.ENOTDIR, errno.EISDIR)
NO_MEMORY = ("OutOfMemoryError", "not enough memory", "t allocate memory", "bad_alloc")
FEW = 12  # choices that a message can list
RECORD = logging.Logger("specbench")  # hears all that is said, and is silent itself; a run's log listens to it


class InputError(Exception):
    """A user's mistake: reported in one line on stderr, with exit status 2."""


@contextmanager
def name_place(prefix: str) -> Iterator[None]:
    """Prefix an InputError's message with the section of its setting."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{prefix}{error}") from None


def refuse(error: InputError) -> int:
    """Print a mistake in one line on stderr, and return its exit status."""
    warn(str(error))
    return 2


def warn(message: str) -> None:
    """Print a message in one line on stderr, if anybody reads it."""
    line = escape_controls(" ".join(message.split()))
    with suppress(OSError):
        print(f"specbench: {line}", file=sys.stderr)
    with suppress(OSError):
        RECORD.info(line)


def escape_controls(text: str) -> str:
    """Return the text with control characters and lone surrogates escaped: they could control the terminal, or make printing
    fail.
    """
    return CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def format_error(error: BaseException, longest: int = 500) -> str:
    """Return the error's type, text, file and line, for the author of that code; without folders of this machine."""
    text = mask_home(escape_controls(" ".join(str(error).split())))
    return f"{type(error).__name__}: {text[:longest]}{_locate_error(error)}"


def mask_home(text: str) -> str:
    """Return a text with ~ for the home folder, unless that is the root of the file system or unknown."""
    try:
        home = str(Path.home())
    except RuntimeError:
        return text
    return text.replace(home, "~") if len(home) > 1 else text


def _locate_error(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return f" ({Path(error.filename or '').name}:{error.lineno})"
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""


def describe_file_error(error: BaseException) -> str:
    """Return which file an error is about, and what is wrong with it.

    A failed write does not name its file: search the callers.
    """
    reason = error.strerror if isinstance(error, OSError) and error.strerror else format_error(error, longest=160)
    named = error.filename if isinstance(error, OSError) else None
    place = str(named or next(_iter_files(error), ""))
    remedy = "; choose another folder" if place != OUTPUT and is_unusable(error) else ""
    return f"{mask_home(place)}: {reason}{remedy}" if place else reason


def _iter_files(error: BaseException) -> Iterator[str | Path]:
    """Yield the paths and the names of the files that the failing functions hold, the innermost first."""
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        for value in list(frame.f_locals.values()):
            held = vars(value).values() if hasattr(value, "__dict__") and not isinstance(value, type) else ()
            for one in (value, *held):
                if isinstance(one, Path) or (isinstance(one, IOBase) and isinstance(getattr(one, "name", None), str)):
                    yield one if isinstance(one, Path) else one.name  # type: ignore[attr-defined]


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, in main memory or on a device."""
    return isinstance(error, MemoryError) or _says(error, NO_MEMORY)


def is_about_file(error: BaseException) -> bool:
    """Return whether an error is about a file, for `describe_file_error` to name."""
    return is_unusable(error) or (isinstance(error, OSError) and bool(error.filename))


def is_unusable(error: BaseException) -> bool:
    """Return whether a file or its folder is missing, forbidden, full or broken."""
    return is_full_disk(error) or (isinstance(error, OSError) and error.errno in UNUSABLE)


def is_full_disk(error: BaseException) -> bool:
    """Return whether a disk was full, as reported by the system, sqlite, safetensors or torch."""
    return _says(error, FULL)


def _says(error: BaseException, words: Sequence[str]) -> bool:
    """Return whether an error's or its cause's message contains one of these: libraries use many types for one problem."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    return any(word in f"{type(one).__name__}: {one}" for one in chain for word in words)


def abbreviate(names: list[str], most: int = 3) -> str:
    """Join the first few names, and say how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def show_value(value: object) -> str:
    """Return a setting's value for a message: null for None, and cut if it is long."""
    text = "null" if value is None else str(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def suggest_choices(given: str, choices: Sequence[str]) -> str:
    """Return `a, b or c`, the choice closest to what was given first; empty without choices."""
    close = difflib.get_close_matches(str(given)[:SHOWN], choices, n=1)
    ordered = close + [choice for choice in choices if choice not in close]
    return ", ".join(ordered[:-1]) + (" or " if len(ordered) > 1 else "") + ordered[-1] if ordered else ""


def suggest_nearest(given: str, choices: Sequence[str]) -> str:
    """Return the end of a message: `; the nearest is a` if a choice is close, else the choices if they are few, else nothing."""
    if close := difflib.get_close_matches(given[:SHOWN], choices, n=1):
        return f"; the nearest is {close[0]}"
    return f"; expected {suggest_choices('', choices)}" if 0 < len(choices) <= FEW else ""
