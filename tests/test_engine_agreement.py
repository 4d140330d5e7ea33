"""One method on two engines: the first step that differs and why, and texts by pencil and paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from specbench.analysis.engines import (
    END,
    LAST,
    LENGTH,
    ONE_DRAFTS,
    TEXTS,
    TOKENS,
    find_step_difference,
    has_engines,
    tabulate_engines,
)  # fmt: skip
from specbench.analysis.loaded_run import read_run
from specbench.analysis.summary import summarise
from specbench.records.trial import Trial, hash_ids, hash_text
from specbench.report.engines import tabulate_words, warn_texts
from tests.fake_run import trial, write_run

IDS = [9, 8, 7, 6, 5, 4, 3]


def turn(label: str, steps: Sequence[tuple[int, int, int]], ids: Sequence[int] = IDS, **changes: Any) -> Trial:
    """steps: (drafted, accepted, committed)."""
    drafted, accepted, committed = ([step[place] for step in steps] for place in range(3))
    one = trial(label, committed, 1.0, output_ids=list(ids), output_sha256=hash_ids(ids), **changes)
    return replace(one, drafted=drafted, depth=drafted, nodes=[count + 1 for count in drafted], accepted=accepted)


@pytest.mark.parametrize(
    ("here", "there", "step", "reason"),
    [
        ([(4, 2, 3), (4, 2, 3)], [(4, 2, 3), (4, 2, 3)], None, None),
        ([(4, 2, 3), (4, 2, 3)], [(4, 2, 3), (4, 3, 3)], 2, END),
        ([(4, 2, 3), (4, 2, 3)], [(4, 2, 3), (3, 2, 3)], 2, LAST),
        ([(0, 0, 1), (4, 2, 3), (4, 1, 2)], [(4, 2, 3), (4, 2, 3)], 1, ONE_DRAFTS),
        ([(2, 2, 3), (4, 2, 3)], [(4, 2, 3), (4, 2, 3)], 1, LENGTH),
        ([(4, 1, 2), (4, 2, 3), (4, 0, 1)], [(4, 2, 3), (4, 2, 3)], 1, TOKENS),
    ],
)
def test_the_first_step_that_differs(
    here: list[tuple[int, int, int]], there: list[tuple[int, int, int]], step: int | None, reason: str | None
) -> None:
    found = find_step_difference(turn("pld@x", here, finish_reason="eos"), turn("pld", there, finish_reason="eos"))
    assert (found.step, found.reason) == (step, reason) if found else step is None


def test_steps_after_texts_have_parted_are_no_news() -> None:
    other = turn("pld", [(4, 3, 4), (4, 1, 2)], [9, 8, 7, 1, 5, 4, 3])
    found = find_step_difference(turn("pld@x", [(4, 2, 3), (4, 2, 3)]), other)
    assert found is not None and found.reason == TEXTS


def test_texts_are_compared_with_those_of_the_same_engine(tmp_path: Path) -> None:
    parted = [9, 8, 7, 6, 5, 4, 2]
    plain = [(0, 0, 1)] * 6
    trials = [
        turn("autoregressive", plain),
        turn("pld", [(4, 2, 3), (4, 2, 3)]),
        turn("autoregressive@x", plain, parted),
        turn("pld@x", [(4, 2, 3), (4, 2, 3)], IDS, decode_s=0.5),
    ]
    run = read_run(write_run(tmp_path / "run", trials).path)
    assert has_engines(run)
    rows = {row["label"]: row for row in tabulate_engines(run).to_dict("records")}
    assert (rows["pld"]["equal_texts"], rows["pld@x"]["equal_texts"]) == (1, 0)
    assert rows["pld@x"]["text_difference"] == "question 1, turn 1, token 7: 3 instead of 2"
    assert (rows["pld@x"]["same_texts"], rows["pld@x"]["equal_steps"], rows["autoregressive@x"]["same_texts"]) == (1, 2, 0)
    (alarm,) = warn_texts(run)
    assert str(alarm).startswith(
        "alarm: pld@x: 1 of 1 texts differ from those of autoregressive@x: first question 1, turn 1, token 7"
    )
    summary = summarise(run)
    gains = summary[summary["task"] == "overall"].set_index("method")["engine_speedup"]
    assert gains["pld@x"] == pytest.approx(2) and gains["autoregressive@x"] != gains["autoregressive@x"]
    words = {row["method"]: row for row in tabulate_words(run, summary).to_dict("records")}
    assert words["pld@x"]["over its engine's own"] == "2.00" and words["pld@x"]["equal steps"] == "2 of 2"


def test_texts_without_ids_are_compared_as_texts(tmp_path: Path) -> None:
    known: dict[str, Any] = {"output_sha256": None, "client_first_s": 0.1, "client_last_s": 1.0}
    trials = [
        trial("autoregressive", [1] * 6, 1.0, text_sha256=hash_text("so"), **known),
        trial("pld", [1] * 6, 1.0, text_sha256=hash_text("no"), **known),
    ]
    directory = write_run(tmp_path / "run", trials)
    for label, text in (("autoregressive", "so"), ("pld", "no")):
        directory.append_text(label, 1, 0, text, None)
    run = read_run(directory.path)
    rows = {row["label"]: row for row in tabulate_engines(run).to_dict("records")}
    assert rows["pld"]["equal_texts"] == 0 and rows["pld"]["text_difference"] == "question 1, turn 1, character 1"


def test_a_run_of_one_engine_in_this_process_has_no_such_table(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", [turn("autoregressive", [(0, 0, 1)] * 6)]).path)
    assert not has_engines(run) and tabulate_engines(run).empty and not list(warn_texts(run))
