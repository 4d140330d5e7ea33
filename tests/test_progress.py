"""What a run shows while it goes, in a log and in a terminal."""

from __future__ import annotations

import io
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from specbench.records.run_directory import RunDirectory
from specbench.running import progress
from specbench.running.announce import count_missing
from specbench.running.log import start_log, stop_logs
from specbench.running.needs import format_time
from specbench.running.progress import Display, ProgressDisplay
from tasks.question import Question
from tests.fake_run import failed, trial, write_run


def shown(terminal: bool, every: float = 30.0) -> str:
    page = io.StringIO()
    console = Console(file=page, force_terminal=terminal, width=70)
    with ProgressDisplay(console, every) as display:
        display.begin(Path("results/a-run-with-a-name-that-is-longer-than-a-line-of-the-terminal-would-be"), 8, 2)
        display.show_status("warming up pld")
        for question in range(2):
            display.add_trial(trial("autoregressive", [1] * 9, 1.0, question_id=question))
            display.add_trial(trial("pld", [3] * 3, 0.5, question_id=question))
            display.add_trial(failed("sps", question_id=question))
    return page.getvalue()


def test_a_log_gets_whole_lines_at_the_start_and_at_the_end() -> None:
    lines = shown(terminal=False).splitlines()
    assert lines == [
        "results/a-run-with-a-name-that-is-longer-than-a-line-of-the-terminal-would-be: 8 turns, 2 of them done",
        "sps failed on question 0: out of memory",
        "8/8 turns · repeat 1 · qa · pld 2.00×  sps: 2 failed",
    ]


def test_and_as_many_in_between_as_are_asked_for() -> None:
    lines = shown(terminal=False, every=0.0).splitlines()
    assert [line.split(" · ")[0] for line in lines if "turns ·" in line] == [f"{done}/8 turns" for done in range(3, 9)]


def test_a_terminal_gets_a_bar_with_the_speeds_below() -> None:
    last = shown(terminal=True).rsplit("repeat 1 · qa", 1)[1]
    assert "8/8" in last and "pld 2.00×  sps: 2 failed" in last


def wait_for(page: io.StringIO, text: str) -> bool:
    end = time.monotonic() + 10
    while text not in page.getvalue() and time.monotonic() < end:
        time.sleep(0.05)
    return text in page.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_a_stage_shows_that_time_passes(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "NAMED_AFTER", 0.5)
    page = io.StringIO()
    with Display(Console(file=page, force_terminal=terminal, width=100), every=1.0) as display:
        display.show_status("loading the target")
        assert wait_for(page, "loading the target"), "it is named"
        assert wait_for(page, "loading the target · 2 s"), "and named again"


def test_nothing_is_drawn_while_something_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "NAMED_AFTER", 0.0)
    page = io.StringIO()
    with Display(Console(file=page, width=100), every=0.1) as display:
        display.show_status("timing", timed=True)
        before = page.getvalue()
        time.sleep(1.5)
        assert page.getvalue() == before == "timing\n"


def test_quiet_says_nothing_but_records_it(tmp_path: Path) -> None:
    page = io.StringIO()
    start_log(str(tmp_path / "log"))
    with Display(Console(file=page, force_terminal=True, quiet=True)) as display:
        display.announce(["notice: \x1b[31mred"])
    stop_logs()
    assert page.getvalue() == "" and "notice: \\x1b[31mred\n" in (tmp_path / "log").read_text()


def test_a_long_run_says_how_to_stop_and_resume_it() -> None:
    stopping = "Ctrl-C keeps what is done, the same command resumes"
    assert format_time(34.2, stopping)[0] == f"time: at most about 34 minutes; {stopping}"
    assert format_time(300, stopping)[0] == f"time: at most about 5.0 hours; {stopping}"
    assert format_time(2.5, stopping)[0] == "time: at most about 2.5 minutes"


def test_a_resumed_run_counts_what_is_left(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [trial(label, [1], 1.0, question_id="a") for label in ("autoregressive", "pld")])
    questions = [Question(name, "qa", "qa", ("?",)) for name in ("a", "b")]
    arms: Any = [SimpleNamespace(label=label) for label in ("autoregressive", "pld")]
    assert count_missing(run, questions, arms, repeats=1) == 0.5
    assert count_missing(RunDirectory(tmp_path / "new"), questions, arms, repeats=1) == 1
