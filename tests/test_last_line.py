"""Whatever escapes a command is one line, with an exit status that says whose mistake it is and a file that holds the trace."""

from __future__ import annotations

import errno
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from specbench import ROOT
from specbench.cli import main
from specbench.cli.last_line import explain
from specbench.cli.parser import Command
from specbench.errors import InputError, mask_home
from specbench.records.files import JsonLines
from tests.conftest import Cli


def raise_(error: BaseException) -> None:
    raise error


def recurse(depth: int) -> int:
    return recurse(depth + 1)


def allocate() -> None:
    torch.empty(2**60)


def fill_disk(path: Path) -> None:
    """A write like any in specbench: the error does not know the file, only its writer does."""
    with path.open("w") as file:
        file.fileno()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fail(cause: Callable[[], object]) -> None:
    cause()


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
ESCAPED: dict[str, tuple[Callable[[], object], int, str]] = {
    "ours": (
        lambda: raise_(TypeError("no\nway")),
        70,
        r"internal error: TypeError: no way \(.*:\d+\); full trace: /",
    ),
    "recursion": (lambda: recurse(0), 70, r"internal error: RecursionError: maximum recursion depth exceeded"),
    "assertion": (lambda: raise_(AssertionError()), 70, r"internal error: AssertionError: "),
    "input": (lambda: raise_(InputError("limit=x")), 2, r"limit=x$"),
    "memory": (lambda: raise_(MemoryError()), 2, r"out of memory: MemoryError.*; choose a smaller .*; full trace: /"),
    "torch": (allocate, 2, r"out of memory: RuntimeError: .*tried to allocate .*; full trace: /"),
    "named file": (lambda: Path("/nowhere/x").read_bytes(), 2, r"/nowhere/x: No such file or directory; choose another folder$"),
    "full disk": (lambda: fill_disk(Path("deep.jsonl")), 2, r"deep.jsonl: No space left on device; choose another folder$"),
    "torch's archive": (
        lambda: raise_(RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")),
        2,
        r"unexpected pos 64 vs 0",
    ),
    "sqlite": (
        lambda: raise_(sqlite3.OperationalError("database or disk is full")),
        2,
        r"database or disk is full",
    ),
    "stopped": (lambda: raise_(KeyboardInterrupt()), 130, r"stopped$"),
    "stopped in": (lambda: raise_(KeyboardInterrupt(Path("a/b"))), 130, r"stopped; run the same command with out=a/b to resume$"),
    "connection": (lambda: raise_(ConnectionResetError(104, "reset")), 70, r"internal error: ConnectionResetError: .*reset"),
    "no reader": (lambda: raise_(BrokenPipeError()), 141, r"^$"),
}


@pytest.mark.parametrize("name", ESCAPED)
def test_an_escaped_error_is_one_line(name: str, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    cause, expected, message = ESCAPED[name]
    monkeypatch.setattr("specbench.cli.last_line._drop_output", lambda: 141)
    monkeypatch.setitem(main.COMMANDS, "fail", Command("fail", lambda options: fail(cause), ""))
    status, out, err = cli("fail")
    assert status == expected and out == "" and err.count("\n") == (name != "no reader")
    assert re.search(message, err.removeprefix("specbench: ").rstrip("\n")), err


def test_the_trace_is_kept_without_the_home_folder(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    try:
        raise TypeError("/home/somebody/secret is odd")
    except TypeError as error:
        assert explain(error) == 70
    (trace,) = tmp_path.glob("specbench-error-*.txt")
    text = trace.read_text()
    assert str(trace) in capsys.readouterr().err
    assert "Traceback" in text and "~/secret is odd" in text and "somebody" not in text


def test_a_trace_that_cannot_be_written_is_said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    assert explain(TypeError("x")) == 70
    line = "specbench: internal error: TypeError: x; its trace could not be written: No such file or directory\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("home", ["/", ""])
def test_a_home_that_is_the_root_hides_nothing(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", home or "/")
    assert mask_home("/etc/passwd") == "/etc/passwd"


def test_the_records_of_a_run_are_named_when_the_disk_is_full(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda file: raise_(FULL))
    with tempfile.TemporaryDirectory() as folder:
        with pytest.raises(OSError) as caught:
            JsonLines(Path(folder) / "trials.jsonl").append({"a": 1})
        assert explain(caught.value) == 2
    assert "trials.jsonl: No space left on device; choose another folder" in capsys.readouterr().err


SHELL = [
    ("list | head -1 >/dev/null; exit ${PIPESTATUS[0]}", (0, 141), ""),
    ("list > /dev/full", (2,), "specbench: standard output: No space left on device"),
    ("--help > /dev/full", (2,), "specbench: standard output: No space left on device"),
    ("list >&-", (0,), ""),
    ("run limt=3 >&-", (2,), "specbench: limt: no such setting; the nearest is limit"),
    ("list >&- 2>&- <&-", (0,), ""),
    ("run limt=3 2> >(exec 0<&-; sleep 9); exit $?", (2,), ""),
]


@pytest.mark.full
@pytest.mark.parametrize(("words", "statuses", "message"), SHELL)
def test_streams_that_are_closed_or_full(words: str, statuses: tuple[int, ...], message: str) -> None:
    command = ["bash", "-c", f"{sys.executable} -m specbench {words}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode in statuses and done.stderr == (f"{message}\n" if message else ""), done
