"""A questions file is data of strangers: whatever is wrong in it gets file:line, and no pipe or device is read for ever."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specbench.errors import InputError
from tasks import question
from tasks.jsonl import Jsonl
from tasks.question import Question, parse_questions, read_questions
from tests.conftest import Cli, Refuse

EXAMPLES = 100
GOOD = {"question_id": 1, "category": "qa", "turns": ["Who?"]}


def line(**changes: Any) -> bytes:
    return json.dumps({**GOOD, "question_id": 2, **changes}).encode()


BROKEN = {
    "byte order mark": (b"\xef\xbb\xbf" + line(), "2: starts with a byte order mark; save the file as UTF-8 without one"),
    "UTF-16": (json.dumps(GOOD).encode("utf-16"), "2: not UTF-8"),
    "raw NUL": (b'{"question_id": "a\x00"}', "2: not valid JSON: Invalid control character"),
    "NUL in an id": (line(question_id="a\0"), r"2: question_id is 'a\x00', expected at most 200 printable characters"),
    "escape sequence in a task": (line(task="\x1b[2J"), r"2: task is '\x1b[2J', expected at most 200 printable characters"),
    "newline in a category": (line(category="a\nb", task="x"), r"2: category is 'a\nb', expected at most 200 printable"),
    "long id": (line(question_id="x" * 201), "expected at most 200 printable characters"),
    "same field twice": (
        b'{"question_id": 2, "category": "qa", "turns": ["x"], "turns": ["y"]}',
        "2: the field 'turns' is given twice",
    ),
    "NaN": (b'{"question_id": 2, "category": "qa", "turns": ["x"], "reference": NaN}', "2: not valid JSON: NaN is not a number"),
    "thousands of digits": (b'{"question_id": ' + b"9" * 5000 + b"}", "2: not valid JSON: Exceeds the limit"),
    "deep reference": (b'{"reference": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "2: not valid JSON: nested too deeply"),
    "lone surrogate as key": (rb'{"\ud800": 1}', "2: a text holds half of a surrogate pair"),
    "mapping as id": (line(question_id={"a": 1}), "2: question_id is {'a': 1}, expected a whole number or a non-empty string"),
    "list as category": (line(category=["qa"]), "2: category is ['qa'], expected a non-empty string"),
    "number as task": (line(task=3), "2: task is 3, expected a non-empty string"),
    "strata is a text": (line(strata="German"), "2: strata is 'German', expected a mapping such as {'language': 'German'}"),
    "number in strata": (line(strata={"level": 3}), "2: strata.level is 3, expected a non-empty string"),
    "nested turns": (line(turns=[["x"]]), "2: turn 1 is list, expected a text"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_line_is_named(name: str) -> None:
    broken, expected = BROKEN[name]
    with pytest.raises(InputError) as error:
        parse_questions(json.dumps(GOOD).encode() + b"\n" + broken, "file.jsonl")
    assert str(error.value).startswith("file.jsonl:2: ") and expected in str(error.value) and len(str(error.value)) < 400


def test_lines_may_end_as_on_windows() -> None:
    assert parse_questions(json.dumps(GOOD).encode() + b"\r\n\r\n", "x") == [Question("1", "qa", "qa", ("Who?",))]


@pytest.mark.parametrize(
    ("put", "expected"),
    [
        (os.mkfifo, "cannot be read (expected a file, not a folder, a pipe or a device)"),
        (os.mkdir, "cannot be read (expected a file, not a folder, a pipe or a device)"),
        (lambda path: path.symlink_to("/dev/zero"), "cannot be read (expected a file, not a folder, a pipe or a device)"),
        (lambda path: path.symlink_to("nowhere"), "cannot be read: no such file"),
        (lambda path: None, "cannot be read: no such file"),
    ],
)
def test_what_is_no_file_is_refused(put: Callable[[Path], object], expected: str, refuse: Refuse, tmp_path: Path) -> None:
    put(tmp_path / "q.jsonl")
    assert refuse("run", "suite=jsonl", "suite.path=q.jsonl", "out=run") == f"q.jsonl: {expected}"


def test_a_file_has_a_largest_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(question, "MOST_BYTES", 10)
    (tmp_path / "q.jsonl").write_bytes(line())
    with pytest.raises(InputError, match="q.jsonl: holds more than 10 bytes"):
        read_questions(tmp_path / "q.jsonl")


def test_questions_and_fingerprint_are_of_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_bytes(line())
    suite = Jsonl(str(tmp_path / "q.jsonl"))
    (tmp_path / "q.jsonl").write_bytes(line(turns=["another"]))
    assert suite.questions()[0].turns == ("Who?",)


ROYAL = "\n".join(
    json.dumps({"question_id": number, "category": "x", "task": task, "turns": ["Who is the king?"]})
    for number, task in enumerate(["royal", "royal house", "qa"])
)


def test_a_suite_s_own_tasks_are_chosen_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from specbench.setup.compose import compose_run
    from specbench.setup.questions import open_suite, select_questions

    monkeypatch.chdir(tmp_path)
    Path("q.jsonl").write_text(ROYAL)
    for chosen, expected in (("[royal]", ["0"]), ("royal", ["0"]), ("[royal house,qa]", ["1", "2"])):
        config = compose_run(["suite=jsonl", "suite.path=q.jsonl", f"task={chosen}"])
        assert [one.id for one in select_questions(config, open_suite(config), None)] == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("task=[roial]", "task=roial: no such task; expected royal, royal house or qa: those of suite jsonl"),
        ("task=[royal,queen]", "task=queen: no such task; expected royal, royal house or qa"),
        ("task=[qa,rag]", "suite jsonl has no questions of task rag; it has royal, royal house or qa"),
    ],
)
def test_a_task_that_the_suite_lacks(given: str, expected: str, refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(ROYAL)
    assert refuse("run", "suite=jsonl", "suite.path=q.jsonl", given, "out=run").startswith(expected)


def test_by_default_all_tasks_of_the_suite_are_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from specbench.setup.compose import compose_run
    from specbench.setup.questions import open_suite, select_questions

    monkeypatch.chdir(tmp_path)
    Path("q.jsonl").write_text(ROYAL)
    config = compose_run(["suite=jsonl", "suite.path=q.jsonl"])
    assert [one.task for one in select_questions(config, open_suite(config), None)] == ["royal", "royal house", "qa"]


@pytest.mark.full
def test_a_sweep_over_a_suite_s_own_tasks(cli: Cli, tmp_path: Path) -> None:
    """Each job is composed by Hydra itself, which knows no task without a YAML."""
    (tmp_path / "q.jsonl").write_text(ROYAL)
    small = ["repeats=1", "sampling.max_new_tokens=4", "check_baseline=false", "method=[]"]
    status, _, err = cli("run", "-m", "suite=jsonl", "suite.path=q.jsonl", "task=royal,qa", "out=sweep", *small)
    assert status == 0, err
    assert sorted(path.name for path in (tmp_path / "sweep").iterdir() if path.is_dir()) == ["task=qa", "task=royal"]


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
fields = st.sampled_from(["question_id", "category", "turns", "task", "reference", "more"])
rows = st.dictionaries(fields, plain, max_size=6).map(lambda changes: {**GOOD, **changes}) | plain
as_json = rows.map(lambda row: json.dumps(row).encode())
torn = st.tuples(as_json, st.integers(0, 60)).map(lambda pair: pair[0][: pair[1]])
mutated = st.tuples(as_json, st.integers(0, 60), st.binary(max_size=3)).map(lambda t: t[0][: t[1]] + t[2] + t[0][t[1] + 1 :])
files = st.lists(as_json | torn | mutated | st.binary(max_size=12), max_size=4).map(b"\n".join)


def read_or_refuse(content: bytes) -> None:
    try:
        questions = parse_questions(content, "q.jsonl")
    except InputError as error:
        assert str(error).startswith("q.jsonl:")
        return
    assert questions and all(isinstance(turn, str) and turn.strip() for one in questions for turn in one.turns)
    assert all(name.isprintable() for one in questions for name in (one.id, one.task, one.category))
    json.dumps([one.__dict__ for one in questions]).encode()


def check_examples(number: int) -> None:
    quiet = [HealthCheck.too_slow]
    settings(max_examples=number, deadline=None, suppress_health_check=quiet)(given(files)(read_or_refuse))()


def test_any_file_is_read_or_refused_by_its_line() -> None:
    check_examples(EXAMPLES)


@pytest.mark.slow
def test_thousands_of_files() -> None:
    check_examples(5000)
