"""Long prompts from a source of one's own: their lengths, their tasks, and whether the source had to be repeated."""

from __future__ import annotations

from pathlib import Path

import pytest

from specbench.setup.compose import compose_run
from specbench.setup.questions import open_suite
from tasks.question import Question
from tests.conftest import Refuse

DOCUMENTS = [f"Document {number} " + chr(97 + number) * 180 for number in range(10)]  # about 190 characters each


def read_suite(folder: Path, *overrides: str) -> list[Question]:
    (folder / "source.txt").write_text("\n \n\n".join(DOCUMENTS) + "\n")
    return open_suite(compose_run(["suite=long_context", f"suite.path={folder / 'source.txt'}", *overrides])).questions()


def test_each_length_is_a_task_of_so_many_characters(tmp_path: Path) -> None:
    questions = read_suite(tmp_path, "suite.lengths=[64,400,1000]", "suite.per_length=2")
    assert [question.task for question in questions] == [f"context_{n}" for n in (64, 64, 400, 400, 1000, 1000)]
    for question in questions:
        text, _, request = question.turns[0].rpartition("\n\n")
        wanted = 4 * int(question.strata["length bucket"])
        assert request == "Summarize the text above." and wanted - 2 <= len(text) <= wanted


def test_a_short_source_is_repeated_and_says_so(tmp_path: Path) -> None:
    questions = read_suite(tmp_path, "suite.lengths=[400,1000]", "suite.per_length=1")
    assert [question.strata["repeated"] for question in questions] == ["no", "yes"]
    assert [max(map(question.turns[0].count, DOCUMENTS)) for question in questions] == [1, 2]


def test_questions_differ_and_are_the_same_every_time(tmp_path: Path) -> None:
    questions = read_suite(tmp_path, "suite.lengths=[64]", "suite.per_length=10")
    assert len({question.turns for question in questions}) == 10
    assert questions == read_suite(tmp_path, "suite.lengths=[64]", "suite.per_length=10")
    assert questions != read_suite(tmp_path, "suite.lengths=[64]", "suite.per_length=10", "suite.seed=1")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["suite.path=null"], "suite long_context needs a source: give a text file as suite.path=FILE"),
        ([], "suite.per_length=8: expected at most 2, the documents of s.txt"),
        (["suite.lengths=[64,64]"], "suite.lengths=[64, 64]: expected different numbers of tokens, at least one"),
        (["suite.lengths=[]"], "suite.lengths=[]: expected different numbers of tokens, at least one"),
        (["suite.lengths=[1]"], "suite.lengths.0=1: expected a whole number, at least 16"),
    ],
)
def test_bad_settings_are_named(overrides: list[str], expected: str, refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "s.txt").write_text("One.\n\nTwo.")
    assert refuse("run", "suite=long_context", "suite.path=s.txt", *overrides, "out=run").startswith(expected)


def test_a_source_that_is_no_text(refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "s.txt").write_bytes(b"\xff")
    assert refuse("run", "suite=long_context", "suite.path=s.txt", "out=run") == "s.txt: not UTF-8"
