"""Suites of data that others publish, in their schemas: every YAML of conf/suite, rows made up here in place of theirs."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow.parquet import write_table

from specbench.analysis.loaded_run import read_run
from specbench.records.run_directory import RunDirectory
from specbench.setup.compose import CONF, compose_run, list_options
from specbench.setup.questions import open_suite, select_questions
from tasks.answers import compare_boxed, compare_number
from tasks.published import Published
from tasks.question import Question
from tasks.suite import Suite
from tests.conftest import Cli, Refuse, Tiny

SPEED: dict[str, Any] = {
    **{"question_id": "7", "category": "coding", "sub_category": "python", "turns": ["Write f.", "Now g."], "source": "x"},
    **{"src_id": "1", "difficulty": "hard", "multiturn": True},
}
ENTROPY = SPEED | {"category": "low_entropy", "sub_category": "sort", "turns": ["Sort."], "difficulty": None}
MBPP = {"task_id": 11, "text": "Double a number.", "code": "def f(x): ...", "test_list": ["assert f(1) == 2", "assert f(2) == 4"]}
MATH = {"problem": "What is $1/2$?", "solution": "…", "answer": "\\frac12", "subject": "Algebra", "level": 3, "unique_id": "a/1"}
BOXED = "What is $1/2$?\nPlease reason step by step, and put your final answer within \\boxed{}."
MBPP_TURN = (
    "You are an expert Python programmer, and here is your task: Double a number. "
    "Your code should pass these tests:\n\nassert f(1) == 2\nassert f(2) == 4\n"
)
ROWS: dict[str, tuple[dict[str, Any], Question]] = {
    "humaneval": (
        {"task_id": "Own/0", "prompt": "\ndef f():\n", "canonical_solution": "    pass\n", "test": "", "entry_point": "f"},
        Question("Own/0", "humaneval", "humaneval", ("Complete the code I provided.\ndef f():\n",), "    pass\n"),
    ),
    "gsm8k": (
        {"question": "How many legs have 3 cats?", "answer": "3*4=<<3*4=12>>12\n#### 12"},
        Question("1", "gsm8k", "gsm8k", ("How many legs have 3 cats?",), "3*4=<<3*4=12>>12\n#### 12"),
    ),
    "math_500": (MATH, Question("a/1", "math_500", "Algebra", (BOXED,), "\\frac12", {"difficulty": "level 3"})),
    "mbpp": (MBPP, Question("11", "mbpp", "mbpp", (MBPP_TURN,), "def f(x): ...")),
    "mt_bench": (
        {"question_id": 81, "category": "writing", "turns": ["Write.", "Again."]},
        Question("81", "mt_bench", "writing", ("Write.", "Again.")),
    ),
    "cnn_dm": (
        {"article": "It rained.", "highlights": "Rain.", "id": "ab12"},
        Question("ab12", "cnn_dm", "cnn_dm", ("Summarize: It rained.",), "Rain."),
    ),
    "speed_bench": (SPEED, Question("7", "coding", "python", ("Write f.", "Now g."), None, {"difficulty": "hard"})),
}


def write_lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(pyarrow.Table.from_pylist(list(rows)), path)
    return path


def open_chosen(name: str, *overrides: str) -> Suite:
    return open_suite(compose_run([f"suite={name}", *overrides]))


@pytest.mark.parametrize("name", ROWS)
def test_a_row_in_the_authors_schema(name: str, tmp_path: Path) -> None:
    row, expected = ROWS[name]
    path = write_lines(tmp_path / "data.jsonl", row)
    config = compose_run([f"suite={name}", f"suite.path={path}"])
    suite = open_suite(config)
    assert suite.name == name and select_questions(config, suite, None) == [expected]


def test_every_suite_is_tried_here_or_elsewhere() -> None:
    assert set(list_options("suite")) - set(ROWS) == {
        *("jsonl", "mini", "mini_train", "spec_bench"),  # test_tasks.py, test_mini_suite.py
        *("speed_bench_throughput", "long_context", "written"),  # below
    }


def test_the_written_questions_lie_in_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = compose_run(["suite=written"])
    questions = select_questions(config, open_suite(config), None)
    assert len(questions) == 33 and {question.task for question in questions} == set(config.tasks)
    assert all(len(question.turns) == 2 for question in questions if question.task == "mt_bench")


def test_every_suite_says_its_licence_and_source() -> None:
    for name in list_options("suite"):
        about = compose_run([f"suite={name}"]).about_suite
        assert name in ("jsonl", "long_context") or (about["licence"] and about["source"]), name


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".parquet", ".jsonl.gz", ".json.gz"])
def test_a_file_is_read_by_its_name(kind: str, tmp_path: Path) -> None:
    rows, path = [MBPP, MBPP | {"task_id": 12}], tmp_path / f"data{kind}"
    lines, whole = "\n".join(map(json.dumps, rows)).encode(), json.dumps(rows).encode()
    if kind == ".parquet":
        write_parquet(path, *rows)
    else:
        content = lines if kind.startswith(".jsonl") else whole
        path.write_bytes(gzip.compress(content) if kind.endswith(".gz") else content)
    suite = open_chosen("mbpp", f"suite.path={path}")
    assert [question.id for question in suite.questions()] == ["11", "12"]
    assert suite.fingerprint == open_chosen("mbpp", f"suite.path={write_lines(tmp_path / 'same.jsonl', *rows)}").fingerprint


def test_another_wording_is_another_fingerprint(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "data.jsonl", ROWS["cnn_dm"][0])
    other = open_chosen("cnn_dm", f"suite.path={path}", "suite.turns='{article} TL;DR'")
    assert other.questions()[0].turns == ("It rained. TL;DR",)
    assert other.fingerprint != open_chosen("cnn_dm", f"suite.path={path}").fingerprint


def test_throughput_splits_are_tasks(tmp_path: Path) -> None:
    for subset in ("throughput_1k", "throughput_8k"):
        write_parquet(tmp_path / subset / "test.parquet", ENTROPY)
    chosen = "suite.subset=[throughput_1k,throughput_8k]"
    first, second = open_chosen("speed_bench_throughput", f"suite.path={tmp_path}", chosen).questions()
    strata = {"length bucket": "throughput_1k", "sub category": "sort"}
    assert first == Question("throughput_1k-7", "throughput_1k", "low_entropy", ("Sort.",), None, strata)
    assert (second.id, second.task) == ("throughput_8k-7", "throughput_8k")
    file = tmp_path / "throughput_8k" / "test.parquet"
    one = open_chosen("speed_bench_throughput", f"suite.path={file}", "suite.subset=throughput_8k")
    assert one.questions() == [second]


def test_a_data_set_s_folder_is_read_as_one_of_the_hub(tmp_path: Path) -> None:
    write_lines(tmp_path / "test.jsonl", MBPP)
    assert open_chosen("mbpp", f"suite.dataset={tmp_path}", "suite.subset=null").questions() == [ROWS["mbpp"][1]]


def test_a_wording_keeps_what_is_no_field_and_fills_each_field_once(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "d.jsonl", {"a": "{b}", "b": "B"})
    question = Published("own", "{a} \\boxed{} {row}", "t", path=str(path)).questions()[0]
    assert question == Question("1", "t", "t", ("{b} \\boxed{} 1",))


HOLE = SPEED | {"turns": ["FULL BENCHMARK DATA SHOULD BE FETCHED FROM THE SOURCE USING SPECDEC_BENCH\n\nX"]}
REFUSED: dict[str, tuple[str, list[object], list[str], str]] = {
    "another schema": ("gsm8k", [MBPP], [], "d.jsonl:1: expected a field 'question', as this suite's rows have; found "),
    "an id twice": ("mbpp", [MBPP, MBPP], [], "suite mbpp: two rows have the id '11'"),
    "an empty turn": ("gsm8k", [{"question": " ", "answer": ""}], [], "d.jsonl:1: turn 1 is empty"),
    "a placeholder": ("speed_bench", [HOLE], [], "d.jsonl:1: a placeholder; run the authors' program to fill in the data"),
    "a field that is null": ("speed_bench", [SPEED | {"turns": None}], [], "d.jsonl:1: turn 1 is empty"),
    "no rows": ("gsm8k", [], [], "d.jsonl: contains no questions"),
    "not an object": ("gsm8k", [[1]], [], "d.jsonl:1: expected a JSON object, got list"),
    "several subsets in a file": ("speed_bench_throughput", [ENTROPY], [], "suite.subset=['throughput_1k', 'throughput_2k',"),
    "another score": ("gsm8k", [], ["suite.score=rouge"], "suite.score=rouge: expected "),
    "a number for a licence": ("gsm8k", [], ["suite.licence=3"], "suite.licence=3: expected a line of text, or null"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_data_is_named(case: str, refuse: Refuse, tmp_path: Path) -> None:
    name, rows, more, expected = REFUSED[case]
    write_lines(tmp_path / "d.jsonl", *rows)
    assert refuse("run", f"suite={name}", "suite.path=d.jsonl", *more, "out=run").startswith(expected)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("d.csv", b"a,b", "d.csv: expected a file that ends with .jsonl, .json, .parquet, .jsonl.gz or .json.gz"),
        ("d.parquet", b"PAR1", "d.parquet: not a parquet file: "),
        ("d.jsonl.gz", b"{}", "d.jsonl.gz: not a gzip file: "),
        ("d.jsonl.gz", gzip.compress(b"{}" * 99, mtime=0)[:20], "d.jsonl.gz: not a gzip file: "),
        ("d.json", b'{"rows": []}', "d.json: expected a list of JSON objects"),
        ("d.json", b"[1", "d.json: not valid JSON"),
        ("d.jsonl", b"{", "d.jsonl:1: not valid JSON"),
    ],
)
def test_a_file_that_cannot_be_read(name: str, content: bytes, expected: str, refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert expected in refuse("run", "suite=gsm8k", f"suite.path={name}", "out=run")


def test_a_hub_out_of_reach_is_one_line(refuse: Refuse, tmp_path: Path) -> None:
    line = refuse("run", "suite=gsm8k", f"suite.dataset={tmp_path / 'none'}", "out=run")
    assert line.startswith("suite.dataset=") and line.endswith("; give a file as suite.path=FILE")


# --- what a run keeps


@pytest.mark.full
def test_a_run_holds_strata_licence_and_source_of_its_questions(cli: Cli, tiny: Tiny, tmp_path: Path) -> None:
    rows = [
        {"question_id": 1, "category": "x", "task": "royal", "turns": ["Who?", "Why?"], "strata": {"language": "German"}},
        {"question_id": 2, "category": "x", "task": "royal", "turns": ["Where?"]},
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    suite = ["suite=jsonl", "suite.path=q.jsonl", "suite.licence=CC0-1.0", "suite.source='written here, <i>today</i>'"]
    command = tiny.overrides(*suite, "method=[]", "repeats=1", "out=results/own")
    command = [word for word in command if not word.startswith("suite.per_task")]
    assert cli("run", *command)[0] == 0
    run = read_run(tmp_path / "results" / "own")
    assert run.strata == {"1": {"language": "German"}} and {trial.task for trial in run.trials} == {"royal"}
    prompts = RunDirectory(tmp_path / "results" / "own").read_prompts()
    assert [(prompt.question_id, prompt.turn, prompt.strata) for prompt in prompts] == [
        *(("1", turn, {"language": "German"}) for turn in (0, 1)),
        ("2", 0, None),
    ]
    assert run.provenance["suite"] == {"licence": "CC0-1.0", "source": "written here, <i>today</i>"}
    assert run.config["suite"] == {"_target_": "tasks.jsonl.Jsonl", "path": "q.jsonl", "sha256": None, "name": "jsonl"}
    page = (tmp_path / "reports" / "own" / "index.html").read_text()
    assert "<dd>CC0-1.0</dd>" in page and "<dd>written here, &lt;i&gt;today&lt;/i&gt;</dd>" in page


# --- scores


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("So they have 12 legs.", True),
        ("12", True),
        ("$1,200 / 100 = 12.00", True),
        ("First 12, then 13.", False),
        ("x-12", True),
        ("It is -12.", False),
        ("Twelve.", False),
        ("", False),
    ],
)
def test_the_last_number_decides(text: str, right: bool) -> None:
    assert compare_number("3*4=<<3*4=12>>12\n#### 12", text) is right


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("so $\\boxed{\\frac{1}{2}}$.", True),
        ("\\boxed{1} no, \\boxed{ \\dfrac{1}{2} }", True),
        ("\\boxed{0.5}", False),
        ("\\frac{1}{2}", False),
        ("\\boxed{\\frac{1}{2}", False),
        ("", False),
    ],
)
def test_the_last_box_decides(text: str, right: bool) -> None:
    assert compare_boxed("\\frac{1}{2}", text) is right


def test_only_suites_with_a_score_score(tmp_path: Path) -> None:
    gsm8k = open_chosen("gsm8k", f"suite.path={write_lines(tmp_path / 'g.jsonl', ROWS['gsm8k'][0])}")
    mbpp = open_chosen("mbpp", f"suite.path={write_lines(tmp_path / 'm.jsonl', MBPP)}")
    assert [gsm8k.score(gsm8k.questions()[0], 0, text) for text in ("12", "13")] == [1.0, 0.0]
    assert mbpp.score(mbpp.questions()[0], 0, "12") is None


def test_the_page_of_suites_has_every_suite() -> None:
    page = (CONF.parent / "docs" / "suites.md").read_text(encoding="utf-8")
    assert [name for name in list_options("suite") if f"`{name}`" not in page] == []
