"""Suites: reading, exact errors, subsampling, the one download; SPEC_BENCH_QUESTIONS names the real file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from hashlib import sha256
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from specbench.errors import InputError
from specbench.setup.compose import compose_run
from specbench.setup.questions import open_suite
from tasks.jsonl import Jsonl
from tasks.question import MT_BENCH, TASK_OF_CATEGORY, Question, read_questions, subsample
from tasks.spec_bench import SpecBench

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
REAL = os.environ.get("SPEC_BENCH_QUESTIONS")
needs_real_file = pytest.mark.skipif(not REAL, reason="SPEC_BENCH_QUESTIONS is not set to Spec-Bench's question.jsonl")


def row(question_id: object = 1, category: object = "qa", turns: object = ("Who?",), **more: object) -> dict[str, object]:
    return {"question_id": question_id, "category": category, "turns": turns, **more}


def write(tmp_path: Path, *rows: object) -> Path:
    file = tmp_path / "questions.jsonl"
    file.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return file


def digest(file: Path) -> str:
    return sha256(file.read_bytes()).hexdigest()


# --- reading


def test_rows_become_questions(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        row(81, "writing", ["Write.", "Again."]),
        "",
        row("own-1", "haiku", ["Un\u2028break\x85able"], task="poems", reference="text", extra=1),
        row(3, "rag", ["x"], reference=["Malmö", "b"]),
    )
    assert read_questions(file) == [
        Question("81", "mt_bench", "writing", ("Write.", "Again."), None),
        Question("own-1", "poems", "haiku", ("Un\u2028break\x85able",), "text"),
        Question("3", "rag", "rag", ("x",), '["Malmö", "b"]'),
    ]


def test_raw_line_separators_inside_a_text_do_not_end_its_line(tmp_path: Path) -> None:
    file = write(tmp_path, json.dumps(row(turns=["a\u2028b\x85c"]), ensure_ascii=False))
    assert read_questions(file)[0].turns == ("a\u2028b\x85c",)


def test_wildcards_in_a_path_are_ordinary_characters(tmp_path: Path) -> None:
    file = write(tmp_path, row()).rename(tmp_path / "run[1]*?.jsonl")
    assert len(read_questions(file)) == 1


BROKEN = {
    "not JSON": ('{"question_id": 1,', "2: not valid JSON"),
    "NUL": ("\0", "2: not valid JSON"),
    "too deep": ("[" * 100_000, "2: not valid JSON"),
    "not an object": ("[1]", "2: expected a JSON object, got list"),
    "lone surrogate": (r'{"question_id": 2, "category": "qa", "turns": ["\ud800"]}', "2: a text holds half"),
    "no id": ({"category": "qa", "turns": ["x"]}, "2: field 'question_id' is missing"),
    "no category": ({"question_id": 2, "turns": ["x"]}, "2: field 'category' is missing"),
    "no turns": ({"question_id": 2, "category": "qa"}, "2: field 'turns' is missing"),
    "null id": (row(None), "2: question_id is None"),
    "boolean id": (row(True), "2: question_id is True"),
    "fraction id": (row(1.5), "2: question_id is 1.5"),
    "same id": (row(1), "2: question_id '1' is already used on line 1"),
    "same id as text": (row("1"), "2: question_id '1' is already used on line 1"),
    "turns is a text": (row(2, turns="Who?"), "2: turns must be a list"),
    "no turn": (row(2, turns=[]), "2: turns must be a list of at least one text"),
    "empty turn": (row(2, turns=["x", ""]), "2: turn 2 is empty"),
    "blank turn": (row(2, turns=[" \n"]), "2: turn 1 is empty"),
    "number as turn": (row(2, turns=[7]), "2: turn 1 is int, expected a text"),
    "misspelt category": (
        row(2, "summarisation"),
        "2: unknown category 'summarisation', expected summarization, writing, ",
    ),
    "odd category": (row(2, "zzz"), "2: unknown category 'zzz', expected writing, "),
    "category is null": (row(2, None), "2: category is None"),
    "empty task": (row(2, task=""), "2: task is ''"),
}


@pytest.mark.parametrize("line, message", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_line_is_named(tmp_path: Path, line: object, message: str) -> None:
    file = write(tmp_path, row(1), line)
    with pytest.raises(InputError) as error:
        read_questions(file)
    assert str(error.value).startswith(f"{file}:{message}") and "\n" not in str(error.value)


def test_a_line_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    file = write(tmp_path, row(1), row(2))
    file.write_bytes(file.read_bytes() + b"\xff\n")
    with pytest.raises(InputError, match=r"questions\.jsonl:3: not UTF-8"):
        read_questions(file)


def test_no_file_and_no_questions(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_questions(tmp_path / "absent.jsonl")
    with pytest.raises(InputError, match="no questions in this file"):
        read_questions(write(tmp_path))


# --- subsampling


def many() -> list[Question]:
    sizes = {("mt_bench", c): 10 for c in MT_BENCH} | {("own", "big"): 9, ("own", "small"): 2}
    order = [(t, c, i) for (t, c), size in sizes.items() for i in range(size)]
    return [Question(f"{c}{i}", t, c, ("?",)) for t, c, i in sorted(order, key=lambda x: x[2])]


@pytest.mark.parametrize("limit", [1, 3, 8, 11, 20, 79])
def test_subsample_is_even_nested_and_in_order(limit: int) -> None:
    questions = many()
    kept = subsample(questions, limit, seed=0)
    counts = Counter(q.category for q in kept if q.task == "mt_bench")
    assert sum(counts.values()) == limit and max(counts.values()) - min(counts[c] for c in MT_BENCH) <= 1
    assert kept == sorted(kept, key=questions.index)
    assert set(kept) <= set(subsample(questions, limit + 1, seed=0))


def test_subsample_fills_up_from_larger_categories_and_never_exceeds_what_there_is() -> None:
    own = [q.category for q in subsample(many(), 6, seed=3) if q.task == "own"]
    assert Counter(own) == {"big": 4, "small": 2}
    assert subsample(many(), 1000, seed=3) == subsample(many(), None, seed=3) == many()


def test_subsample_depends_on_the_seed_and_not_on_the_process() -> None:
    code = (
        "from tests.test_tasks import many; from tasks.question import subsample;print(*(q.id for q in subsample(many(), 5, 7)))"
    )
    for hash_seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        output = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, env=environment, text=True)
        assert output.split() == [question.id for question in subsample(many(), 5, 7)]
    assert len({tuple(subsample(many(), 5, seed)) for seed in range(10)}) == 10


def test_subsample_refuses_a_limit_below_one() -> None:
    with pytest.raises(InputError, match="limit is 0"):
        subsample(many(), 0, seed=0)


# --- suites


def test_jsonl_suite(tmp_path: Path) -> None:
    file = write(tmp_path, row())
    suite = Jsonl(str(file), name="mine")
    question = suite.questions()[0]
    assert (suite.name, suite.fingerprint, question.task) == ("mine", digest(file), "qa")
    assert suite.score(question, 0, "She.") is None


def test_a_suite_without_its_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give suite.path=FILE"):
        Jsonl(None)
    with pytest.raises(InputError, match="cannot be read"):
        Jsonl(str(tmp_path / "absent"))


def test_a_given_file_must_have_the_pinned_sha256(tmp_path: Path) -> None:
    file = write(tmp_path, row())
    with pytest.raises(InputError, match="suite.sha256=null"):
        SpecBench(str(file), "unused:", "0" * 64, str(tmp_path))
    assert SpecBench(str(file), "unused:", None, str(tmp_path)).fingerprint == digest(file)


def test_a_download_happens_once_and_heals_a_damaged_cache(tmp_path: Path) -> None:
    source, cache = write(tmp_path, row()), tmp_path / "cache"
    url, expected = source.as_uri(), digest(source)
    suite = SpecBench(None, url, expected, str(cache))
    (cached,) = cache.iterdir()
    cached.write_text("damaged")
    assert SpecBench(None, url, expected, str(cache)).questions() == suite.questions()
    source.unlink()
    assert SpecBench(None, url, expected, str(cache)).fingerprint == expected, "the cached copy needs no source"
    assert list(cache.iterdir()) == [cached]


def test_a_failed_download_leaves_nothing_and_says_what_to_do(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for url, message in [
        ((tmp_path / "absent").as_uri(), "cannot be downloaded"),
        ("http://127.0.0.1:9/x", "cannot be downloaded"),
        ("no-scheme", "cannot be downloaded"),
        (write(tmp_path, row()).as_uri(), "sha256 is"),
    ]:
        with pytest.raises(InputError, match=f"{message}.*suite.path=FILE"):
            SpecBench(None, url, "0" * 64, str(cache))
    assert not cache.exists()


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    file = write(tmp_path, row())
    with pytest.raises(InputError, match="suite.cache_dir=DIR"):
        SpecBench(None, file.as_uri(), None, str(file / "below-a-file"))


# --- configuration


def test_every_task_that_the_reader_knows_has_its_yaml() -> None:
    known = {path.stem: OmegaConf.load(path) for path in (CONF / "task").glob("*.yaml")}
    assert {name: task.name for name, task in known.items()} == {name: name for name in TASK_OF_CATEGORY.values()}


def test_a_list_of_tasks_merges_and_the_suite_instantiates(tmp_path: Path) -> None:
    file = write(tmp_path, row())
    settings = compose_run(["task=[rag,qa]", "suite=jsonl", f"suite.path='{file}'"])
    assert settings.tasks == ["rag", "qa"]
    assert [question.id for question in open_suite(settings).questions()] == ["1"]


# --- Spec-Bench's real questions


@needs_real_file
def test_spec_bench_has_80_questions_per_task() -> None:
    questions = open_suite(compose_run(["suite=spec_bench", f"suite.path='{REAL}'"])).questions()
    assert [q.id for q in questions] == [str(i) for i in range(81, 561)]
    assert Counter(q.task for q in questions) == dict.fromkeys(set(TASK_OF_CATEGORY.values()), 80)
    assert Counter(q.category for q in questions if q.task == "mt_bench") == dict.fromkeys(MT_BENCH, 10)
    assert all(len(q.turns) == (2 if q.task == "mt_bench" else 1) for q in questions)
    assert sum(q.reference is not None for q in questions) == 359


@needs_real_file
def test_spec_bench_subsample_takes_every_mt_bench_category() -> None:
    kept = subsample(read_questions(str(REAL)), 8, seed=0)
    assert Counter(q.task for q in kept) == dict.fromkeys(set(TASK_OF_CATEGORY.values()), 8)
    assert {q.category for q in kept if q.task == "mt_bench"} == set(MT_BENCH)
