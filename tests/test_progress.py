"""What a run shows while it goes, in a log and in a terminal."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from specbench.running.progress import ProgressDisplay
from tests.fake_run import failed, trial


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
