"""What escapes a command becomes one line and an exit status: 2 for the user's mistake, 70 for ours."""

import os
import sys
import tempfile
import traceback

from specbench.cli.output import name_output
from specbench.errors import (
    InputError,
    describe_file_error,
    format_error,
    is_about_file,
    is_out_of_memory,
    mask_home,
    refuse,
    warn,
)

MISTAKE, OURS, STOPPED, NO_READER = 2, 70, 130, 141  # 141: as a shell says of a program that SIGPIPE has stopped


def explain(error: BaseException) -> int:
    """Print an error in one line on stderr, and return the exit status."""
    if isinstance(error, BrokenPipeError):
        return _drop_output()
    if isinstance(error, InputError):
        return refuse(error)
    if isinstance(error, KeyboardInterrupt):
        return _say_stopped(*error.args)
    if is_about_file(error):
        warn(describe_file_error(error))
        return MISTAKE
    trace = _write_trace(error)
    if is_out_of_memory(error):
        warn(f"out of memory: {format_error(error, longest=160)}; choose a smaller model, batch or limit; {trace}")
        return MISTAKE
    warn(f"internal error: {format_error(error, longest=300)}; {trace}")
    return OURS


def _say_stopped(folder: object = None, kept: str = "") -> int:
    """Print what is kept and how to resume, if anything was written."""
    resume = f"run the same command with out={folder} to resume" if folder else ""
    warn("; ".join(filter(None, ["stopped", kept, resume])))
    return STOPPED


def _write_trace(error: BaseException) -> str:
    """Write the full trace to a file of its own, without the home folder's name. Returns the end of the line that tells where."""
    text = mask_home("".join(traceback.format_exception(error)))
    try:
        handle, path = tempfile.mkstemp(prefix="specbench-error-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError as problem:
        return f"its trace could not be written: {problem.strerror or problem}"
    return f"full trace: {mask_home(path)}"


def _drop_output() -> int:
    """Nobody reads standard output any more. What is left of it goes nowhere, so that the interpreter does not complain."""
    if sys.__stdout__ is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())
    return NO_READER


def flush_output() -> None:
    """Write out what was printed: that it cannot be is told here, not while the interpreter ends."""
    if sys.stdout is None:
        return
    try:
        with name_output():
            sys.stdout.flush()
    except OSError:
        _drop_output()
        raise


def open_closed_streams() -> None:
    """Take the places of closed standard streams, so that no file of a run gets one of them."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
