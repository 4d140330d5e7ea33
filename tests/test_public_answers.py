"""Answer files as Medusa, REST and EAGLE publish them: made up here, with their fields."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from specbench.analysis.loaded_run import read_run
from specbench.analysis.summary import summarise
from specbench.errors import InputError
from specbench.exchange.answers import parse_answer, read_answers
from specbench.exchange.spec_bench import import_answers
from specbench.records.run_directory import RunDirectory
from specbench.records.trial import Trial
from tasks.question import Question
from tests.conftest import Cli, Refuse

TEXTS = ["Red, blue.", "Blue, red."]


def answer(question: int, counts: dict[str, list[Any]], **more: Any) -> dict[str, Any]:
    """A question of two turns that take a second each."""
    choice = {"index": 0, "turns": TEXTS, "wall_time": [1.0, 1.0]}
    return {"question_id": question, "answer_id": "a", "model_id": "m", "choices": [choice | counts], "tstamp": 1.5} | more


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


MEDUSA = {"idxs": [1, 3], "new_tokens": [5, 7]}  # 2 + 4 steps
REST = {"idxs": [1, 2], "new_tokens": [5, 7], "accept_lengths:": [2, 2, 1, 2, 3]}  # without prefill's token of each turn
EAGLE_BASELINE = {"idxs": [4, 6], "new_tokens": [0, 0]}
SPEC_BENCH = {"decoding_steps": [2, 3], "new_tokens": [5, 7], "accept_lengths": [2, 2, 1, 2, 3]}


def load(folder: Path, baseline: dict[str, Any], method: dict[str, Any], **more: Any) -> tuple[list[str], list[Trial]]:
    """Import one question's answers; `more`: the baseline's fields."""
    first = write(folder / "vicuna.jsonl", answer(81, baseline, **more))
    second = write(folder / "fast.jsonl", answer(81, method))
    notices = import_answers([second], [first], None, RunDirectory(folder / "run"))
    return [notice.rpartition("/")[2] for notice in notices], read_run(folder / "run").trials


def test_what_medusa_leaves_out_is_null(tmp_path: Path) -> None:
    notices, (*_, first, second) = load(tmp_path, {"idxs": [4, 6], "new_tokens": [5, 7]}, MEDUSA)
    assert notices[1] == "fast.jsonl: no accept_lengths: 12 new_tokens in 6 steps: 2.00 per step"
    assert (first.steps, second.steps) == (2, 4)
    lacking = ("accepted", "committed", "drafted", "nodes", "depth", "prefill_s", "output_ids", "retokenised")
    assert {getattr(first, name) for name in lacking} == {None}
    assert {(first.suite, first.task, first.category)} == {("vicuna", "vicuna", "vicuna")}
    rows = summarise(read_run(tmp_path / "run")).set_index(["method", "task"])
    assert rows.loc[("fast", "overall"), "speedup"] == pytest.approx(1)
    assert rows.loc[("fast", "overall"), "tokens_per_forward"] == pytest.approx(12 / 8)
    assert rows["mean_accepted_tokens"].isna().all()


def test_rest_writes_its_lengths_with_a_colon_and_without_prefills_token(tmp_path: Path) -> None:
    counts = {"idxs": [4, 6], "new_tokens": [5, 7], "accept_lengths:": [1] * 12}
    notices, (*_, first, second) = load(tmp_path, counts, REST, category="writing")
    assert notices == ["fast.jsonl: accept_lengths give 2 tokens fewer than new_tokens in 2 turns"]
    assert (first.committed, second.committed) == ([2, 2], [1, 2, 3])
    assert (first.task, first.category) == ("mt_bench", "writing"), "the baseline's file says it"


def test_eagles_baseline_counts_only_steps(tmp_path: Path) -> None:
    notices, trials = load(tmp_path, EAGLE_BASELINE, MEDUSA)
    assert notices[0] == "vicuna.jsonl: new_tokens is 0 in all 2 turns; idxs give 12 steps"
    assert [trial.new_tokens for trial in trials] == [5, 7, 5, 7]
    with pytest.raises(InputError, match="fast.jsonl:1: not an answer: new_tokens is 0 in all turns; only the baseline's"):
        load(tmp_path, MEDUSA, EAGLE_BASELINE)


def test_spec_benchs_own_have_a_suite(tmp_path: Path) -> None:
    _, trials = load(tmp_path, SPEC_BENCH, SPEC_BENCH, category="writing")
    assert {(trial.suite, trial.task) for trial in trials} == {("spec_bench", "mt_bench")}


def test_tasks_come_from_the_questions(tmp_path: Path) -> None:
    path = write(tmp_path / "vicuna.jsonl", answer(81, MEDUSA))
    questions = [Question("81", "mt_bench", "writing", ("a", "b"))]
    import_answers([], [path], None, RunDirectory(tmp_path / "run"), questions)
    assert {(trial.task, trial.category) for trial in read_run(tmp_path / "run").trials} == {("mt_bench", "writing")}
    write(path, answer(81, MEDUSA), answer(82, MEDUSA))
    with pytest.raises(InputError, match="vicuna.jsonl:2: question 82 is not in --questions, which has 81$"):
        import_answers([], [path], None, RunDirectory(tmp_path / "again"), questions)


def test_a_question_without_a_category_may_stand_beside_those_with_one(tmp_path: Path) -> None:
    path = write(tmp_path / "vicuna.jsonl", answer(81, MEDUSA, category="qa"), answer(82, MEDUSA))
    import_answers([], [path], None, RunDirectory(tmp_path / "run"))
    trials = read_run(tmp_path / "run").trials
    assert {(trial.question_id, trial.task) for trial in trials} == {(81, "qa"), (82, "vicuna")}


def test_steps_are_the_last_ones_number_plus_one_unless_lengths_say_otherwise() -> None:
    assert parse_answer(answer(81, MEDUSA)).steps == [2, 4]
    assert parse_answer(answer(81, REST)).steps == [2, 3]
    assert parse_answer(answer(81, REST | {"idxs": [2, 3]})).steps == [2, 3]


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({"idxs": [1, 2]}, "it has no new_tokens"),
        ({"new_tokens": [5, 7]}, "it has no decoding_steps or idxs"),
        (MEDUSA | {"new_tokens": [5, 0]}, "new_tokens is 0 in a turn whose text is not ERROR"),
        (
            {"new_tokens": [5, 7], "wall_time": [1.0, 1.0], "decoding_steps": [0, 3]},
            "decoding_steps is 0 in a turn with new_tokens",
        ),
        (MEDUSA | {"idxs": [9, 9]}, "idxs gives 20 steps, but new_tokens 12 tokens"),
        (MEDUSA | {"idxs": [1]}, "idxs is not a list of numbers, one per turn"),
        (MEDUSA | {"idxs": [1, -2]}, "idxs is below 0"),
        (REST | {"accept_lengths:": [2, 2, 1, 2, 2]}, "accept_lengths add up to 9 tokens, but new_tokens to 12"),
        (REST | {"accept_lengths:": [3, 7]}, "accept_lengths holds 2 steps, but idxs gives 5"),
        (REST | {"accept_lengths:": ["2"]}, "accept_lengths: is not a list of integers"),
        (MEDUSA | {"turns": TEXTS[:1]}, "new_tokens is not a list of numbers, one per turn"),
    ],
)
def test_counts_that_miss_by_more_than_an_end_token_are_refused(counts: dict[str, list[Any]], said: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", answer(81, MEDUSA), answer(82, counts))
    with pytest.raises(InputError) as refused:
        list(read_answers(path))
    assert str(refused.value) == f"{path}:2: not an answer: {said}"


def test_several_choices_are_refused(tmp_path: Path) -> None:
    row = answer(81, MEDUSA)
    path = write(tmp_path / "a.jsonl", row | {"choices": row["choices"] * 2})
    with pytest.raises(InputError, match="a.jsonl:1: not an answer: it has 2 choices, expected one"):
        list(read_answers(path))


QUESTIONS = "".join(json.dumps({"question_id": q, "category": "writing", "turns": ["Two?", "And?"]}) + "\n" for q in (81, 82))


def test_the_command_gives_notice(cli: Cli, refuse: Refuse, tmp_path: Path) -> None:
    write(tmp_path / "base.jsonl", answer(81, EAGLE_BASELINE))
    write(tmp_path / "ea.jsonl", answer(81, MEDUSA))
    (tmp_path / "mt.jsonl").write_text(QUESTIONS)
    files = ["ea.jsonl", "--baseline", "base.jsonl", "--questions", "mt.jsonl"]
    out = cli("import", *files, "--out", "run")
    assert out.status == 0 and out.err.count("notice: ") == 2, out.err
    assert {trial.category for trial in read_run(tmp_path / "run").trials} == {"writing"}
    assert refuse("import", *files[:4], "no.jsonl", "--out", "other") == "no.jsonl: cannot be read: no such file"


def test_files_without_categories_are_replayed(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mt.jsonl").write_text(QUESTIONS)
    write(tmp_path / "medusa.jsonl", answer(81, MEDUSA), answer(82, MEDUSA | {"turns": ["ERROR", "ERROR"]}))
    of = ["--of", "medusa.jsonl", "suite=jsonl", "suite.path=mt.jsonl", "method=[pld]", "sampling.max_new_tokens=64"]
    status, out, err = cli("replay", *of, "out=run")
    assert status == 0, err
    assert "turns have as many ids as the file counts, the others differ by +" in out
    assert "medusa.jsonl: no accept_lengths: 24 new_tokens in 12 steps: 2.00 per step" in out
    trials = RunDirectory(tmp_path / "run").read_trials()
    assert {(trial.question_id, trial.category, trial.kind) for trial in trials} == {("81", "writing", "replayed")}
    write(tmp_path / "eagle.jsonl", answer(81, EAGLE_BASELINE))
    status, out, err = cli("replay", "--of", "eagle.jsonl", *of[2:], "out=eagle")
    assert status == 0 and "eagle.jsonl: new_tokens is 0 in all 2 turns; idxs give 12 steps" in out, err
