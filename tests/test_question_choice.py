"""`question` and `category` choose questions by name, together with `task` and `limit`; each name must keep a question."""

from __future__ import annotations

from pathlib import Path

import pytest

from specbench.errors import InputError
from specbench.records.run_directory import RunDirectory
from specbench.running.resume import check_same_run
from specbench.setup.compose import compose_certify, compose_run
from specbench.setup.questions import open_suite, select_questions
from tests.conftest import Cli, Refuse
from tests.test_compose import refusal


def choose(*overrides: str) -> list[str]:
    settings = compose_run(overrides)
    return [question.id for question in select_questions(settings, open_suite(settings), settings.limit)]


def test_ids_are_run_alone_in_the_suites_order() -> None:
    assert choose("question=[qa-2,mt_bench-1]") == ["mt_bench-1", "qa-2"]


def test_an_id_may_be_a_number(tmp_path: Path) -> None:
    lines = "\n".join(f'{{"question_id": {number}, "category": "qa", "turns": ["Who?"]}}' for number in (81, 82, 83))
    (tmp_path / "q.jsonl").write_text(lines)
    suite = ("suite=jsonl", f"suite.path={tmp_path / 'q.jsonl'}")
    assert choose(*suite, "question=[81,'83']") == ["81", "83"]
    assert "question=84: suite" in refusal(*suite, "question=[84]") and "no such question" in refusal(*suite, "question=[84]")


def test_categories_choose_inside_tasks_and_limit_comes_last() -> None:
    assert choose("category=[writing]")[:2] == ["mt_bench-1", "mt_bench-9"]
    both = choose("category=[writing,qa]", "limit=3")
    assert len(both) == 6 and {name.rpartition("-")[0] for name in both} == {"mt_bench", "qa"}
    assert choose("category=[writing]", "question=[mt_bench-9]", "task=[mt_bench]") == ["mt_bench-9"]
    assert len(choose("question=[qa-1,qa-2,qa-3]", "limit=2")) == 2


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["category=[writng]"], "category=writng: suite mini has no such category; the nearest is writing"),
        (["question=[qa-0]"], "question=qa-0: suite mini has no such question; the nearest is qa-"),
        (["question=[x]"], "question=x: suite mini has no such question; it has 480, such as mt_bench-1 and rag-80"),
        (["category=[math]", "task=[qa]"], "category=math: task=[qa] leaves no question of it"),
        (["category=[math]", "task=[qa,mt_bench]"], "task=qa: category=[math] leaves no question of it"),
        (["question=[qa-1]", "category=[math]"], "category=math: question=[qa-1] leaves no question of it"),
        (["question=[]"], "question=[]: expected a list of questions' ids, such as [81, q2], or null for all"),
        (["question=[1.5]"], "question=[1.5]: expected a list of questions' ids"),
        (["question=qa-1"], "question=qa-1: expected a list of questions' ids"),
        (["question=1,2"], "question=1,2: expected question=[1,2] for one run with all of them, or -m for one run each"),
        (["category=[1]"], "category=[1]: expected a list of categories"),
    ],
)
def test_a_name_that_keeps_no_question_is_refused(overrides: list[str], said: str) -> None:
    assert said in refusal(*overrides)


def test_the_command_line_refuses_before_anything_loads(refuse: Refuse, cli: Cli) -> None:
    said = "question=qa-0: suite mini has no such question"
    assert refuse("run", "question=[qa-0]", "target.path=nowhere").startswith(said)
    assert refuse("run", "-m", "question=[qa-0]", "seed=1,2").startswith(said)
    assert refuse("plan", "question=[qa-0]").startswith(said)
    assert refuse("certify", "question=[qa-0]").startswith(said)
    assert refuse("train", "method=eagle", "question=[qa-1]").startswith("question: no such setting of specbench train")


def test_certify_chooses_the_same_way() -> None:
    settings = compose_certify(["category=[math]", "limit=2"])
    chosen = select_questions(settings, open_suite(settings), settings.limit)
    assert {question.category for question in chosen} == {"math"} and len(chosen) == 2


def test_the_choice_is_part_of_what_a_run_is(tmp_path: Path) -> None:
    stored = compose_run(["question=[qa-1]", f"out={tmp_path}"])
    RunDirectory(tmp_path).write_config(stored.recorded)
    check_same_run(RunDirectory(tmp_path), stored.recorded)
    with pytest.raises(InputError, match=r"holds another run: its question is \['qa-1'\], here None"):
        check_same_run(RunDirectory(tmp_path), compose_run([]).recorded)


def test_an_older_run_without_these_settings_can_be_extended(tmp_path: Path) -> None:
    now = compose_run([]).recorded
    RunDirectory(tmp_path).write_config({key: value for key, value in now.items() if key not in ("question", "category")})
    check_same_run(RunDirectory(tmp_path), now)
    with pytest.raises(InputError, match=r"its category is None, here \['qa'\]"):
        check_same_run(RunDirectory(tmp_path), compose_run(["category=[qa]"]).recorded)
