"""What a command has found, and where that goes: to stdout for people or as JSON. Progress and notices go to stderr."""

import codecs
import io
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from specbench.errors import OUTPUT, RECORD, InputError, escape_controls

PLAIN = {"×": "x", "–": "-", "−": "-", "±": "~", "…": ".", "·": ".", "≤": "<", "≥": ">", "\N{NO-BREAK SPACE}": " ", "τ": "t"}
STDOUT = "-"  # in place of a file
LOG_WIDTH = 140  # columns for tables outside a terminal, where rich would use 80


@dataclass(frozen=True)
class Result:
    """What a command has found. document: for programs; shown: the same for people, in tables and lines.

    status: 1 if the answer is no. problem: raised as an InputError once the result is out.
    """

    document: Mapping[str, Any]
    shown: Sequence[Table | str]
    status: int = 0
    problem: str = ""


@contextmanager
def name_output() -> Iterator[None]:
    """Name standard output in an OSError, such as that of a full disk."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, OUTPUT) from None


class _Console(Console):
    """A console that tells when nobody reads any more; rich's own exits with status 1, which here means "no"."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError

    def print(self, *objects: Any, **options: Any) -> None:
        with name_output():
            super().print(*objects, **options)


console = _Console(markup=False, emoji=False)  # labels and errors are shown as they are, [brackets] included


def publish(result: Result, json_file: str | None) -> None:
    """Print a result; as JSON alone for the file -, else the tables, and write the JSON into a file if one is given."""
    for line in result.shown:
        if isinstance(line, str):
            RECORD.info(line)
    if json_file == STDOUT:
        with name_output():
            sys.stdout.write(format_document(result.document))
    else:
        print_shown(result.shown)
    if json_file not in (None, STDOUT):
        from specbench.records.files import write_atomic

        write_atomic(Path(str(json_file)), format_document(result.document))
    if result.problem:
        raise InputError(result.problem)


def print_shown(shown: Sequence[Table | str]) -> None:
    """Print tables and lines; an empty line comes before a table but the first."""
    widen_console()
    for place, one in enumerate(shown):
        if isinstance(one, str):
            print_lines(one)
        else:
            print_lines(*[""] * (place > 0))
            console.print(one)


def format_document(document: Mapping[str, Any]) -> str:
    """Return a JSON document in ASCII."""
    return json.dumps(make_plain(document), indent=1, allow_nan=False) + "\n"


def make_plain(value: Any) -> Any:
    """Return what JSON can hold: null for nan, infinity and pandas' NA; mappings for dataclasses; rows for a frame."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if hasattr(value, "to_dict"):
        value = value.to_dict("records")
    if isinstance(value, Mapping):
        return {str(key): make_plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [make_plain(inner) for inner in value]
    if hasattr(value, "item"):  # numpy's
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else _make_text(value)


def _make_text(value: Any) -> str | None:
    return None if type(value).__name__ in ("NAType", "NaTType") else str(value)


def widen_console() -> None:
    """Make room for wide tables outside a terminal, unless COLUMNS says how much there is."""
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = max(console.width, LOG_WIDTH)


def get_width() -> int:
    """Return the columns that there are for tables."""
    widen_console()
    return console.width


def print_lines(*lines: object) -> None:
    """Print each line as it is: no markup, no colours, no wrapping, and no control of the terminal."""
    for line in lines:
        console.print(escape_controls(str(line)), highlight=False, soft_wrap=True)


def accept_any_text() -> None:
    """Let the output take characters that its encoding lacks, such as × in ASCII: like ones or escapes replace them."""
    codecs.register_error("specbench", _replace_characters)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="specbench")


def _replace_characters(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(PLAIN.get(character) or ascii(character)[1:-1] for character in text), error.end
