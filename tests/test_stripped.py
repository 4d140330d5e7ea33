"""A run without its texts: no word is left, and every number is."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from specbench import ROOT
from specbench.analysis.equality import compute_identical_share
from specbench.analysis.loaded_run import read_run
from specbench.compare.comparison import compare_runs
from specbench.errors import InputError
from specbench.exchange.spec_bench import export_answers
from specbench.records.run_directory import COPIED, RunDirectory
from specbench.records.stripped import strip_run
from specbench.replay.sources import read_run_answers
from specbench.report.render import render_report
from specbench.running.resume import check_same_run
from tests.whole_run import WHOLE, copy_with, write_whole_run

STORED = ROOT / "results/reference/cpu-mini-1b"
NUMBERS = re.compile(r"\d+(?:\.\d+)?")


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return write_whole_run(tmp_path / "here" / "run")


@pytest.fixture
def stripped(whole: Path, tmp_path: Path) -> Path:
    return strip_run(whole, tmp_path / "there")


def read_rows(run: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def list_page_numbers(page: Path) -> list[str]:
    """Return the numbers of a page, up to its example texts and the documents behind them."""
    shown = page.read_text(encoding="utf-8").split("Example outputs, first repeat")[0].split("Settings and provenance")[0]
    return NUMBERS.findall(shown)


@pytest.mark.full
def test_the_report_of_a_stripped_run_has_every_number_of_the_original(tmp_path: Path) -> None:
    copy = strip_run(STORED, tmp_path)
    before, after = (render_report([path], tmp_path / name) for path, name in ((STORED, "before"), (copy, "after")))
    assert {path.name for path in before.files} == {path.name for path in after.files}
    for path in before.files:
        if path.suffix in (".csv", ".md", ".tex", ".svg"):
            assert path.read_bytes() == (after.out / path.name).read_bytes(), path.name
    assert before.summary["identical"].notna().any() and before.summary["accuracy"].notna().any()
    assert list_page_numbers(before.page) == list_page_numbers(after.page) and len(list_page_numbers(after.page)) > 500
    assert "kept as hashes" in after.page.read_text() and "kept as hashes" not in before.page.read_text()
    assert "Example outputs" in before.page.read_text() and "Example outputs" not in after.page.read_text()
    assert after.alarms == before.alarms


def test_no_prompt_and_no_answer_is_left(tmp_path: Path) -> None:
    copy = strip_run(STORED, tmp_path)
    assert sorted(path.name for path in copy.iterdir()) == sorted(name for name in COPIED if (STORED / name).exists())
    content = "".join(path.read_text(encoding="utf-8") for path in copy.iterdir())
    texts = [json.dumps(row["text"], ensure_ascii=False)[1:-1] for row in read_rows(STORED, "texts")]
    ids = [",".join(map(str, row["prompt_ids"])) for row in read_rows(STORED, "prompts")]
    ids += [",".join(map(str, row["output_ids"])) for row in read_rows(STORED, "trials") if row["output_ids"]]
    assert len(texts) > 100 and len(ids) > 100
    assert not [text for text in [*texts, *ids] if text in content]
    assert {row["text"] for row in read_rows(copy, "texts")} == {None}


def test_the_file_of_questions_is_named_without_its_folder(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    settings = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    settings["suite"]["path"] = "/home/somebody/question.jsonl"
    (run / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    copied = yaml.safe_load((strip_run(run, tmp_path / "there") / "config.yaml").read_text(encoding="utf-8"))
    assert copied == settings | {"suite": settings["suite"] | {"path": "question.jsonl"}}


def test_equal_answers_are_still_equal_and_others_are_not(whole: Path, tmp_path: Path) -> None:
    other = copy_with(
        whole, tmp_path / "other" / "run", "texts.jsonl", (whole / "texts.jsonl").read_text().replace("a text", "b", 1)
    )
    copies = [strip_run(path, tmp_path / name) for path, name in ((whole, "one"), (other, "two"))]
    assert [len({row["sha256"] for row in read_rows(copy, "texts")}) for copy in copies] == [1, 2]
    rows = read_rows(whole, "trials")
    changed = next(row for row in rows if row["method"] == "pld")
    changed |= {"output_ids": None, "output_sha256": "0" * 64}
    copy_with(whole, tmp_path / "third" / "run", "trials.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    shares = [
        compute_identical_share(read_run(strip_run(path, tmp_path / name)).frame)["pld", "overall"]
        for path, name in ((whole, "same"), (tmp_path / "third" / "run", "differing"))
    ]
    assert shares[0] == 1 and shares[1] == 1 - 1 / 8, "one of eight turns of pld"


def test_a_stripped_run_compares_as_its_original_does(tmp_path: Path) -> None:
    provenance = json.loads((STORED / "run.json").read_text()) | {"started": "2026-12-01T12:00:00Z"}
    later = copy_with(STORED, tmp_path / "later", "run.json", json.dumps(provenance))
    copy = strip_run(later, tmp_path / "copy")
    assert compare_runs(STORED, copy) == compare_runs(STORED, later)


def test_what_needs_the_texts_says_so(stripped: Path) -> None:
    said = "holds hashes in place of its texts; expected the original run"
    with pytest.raises(InputError, match=f"^--of {stripped}: {said}$"):
        read_run_answers(stripped)
    with pytest.raises(InputError, match=f"^out={stripped}: {said}$"):
        check_same_run(RunDirectory(stripped), WHOLE)
    with pytest.raises(InputError, match=f"^run: {said}$"):
        export_answers(read_run(stripped), stripped.parent / "answers")


def test_a_copy_of_a_copy_is_the_same_and_nothing_is_written_over(stripped: Path, whole: Path, tmp_path: Path) -> None:
    again = strip_run(stripped, tmp_path / "again")
    assert {path.name: path.read_bytes() for path in again.iterdir()} == {
        path.name: path.read_bytes() for path in stripped.iterdir()
    }
    with pytest.raises(InputError, match="already exists; choose another folder"):
        strip_run(whole, whole.parent)
    with pytest.raises(InputError, match="is not a run directory"):
        strip_run(tmp_path / "here", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", [{"text": None}, {"sha256": "0" * 64}])
def test_a_text_or_its_hash(whole: Path, change: dict[str, Any]) -> None:
    rows = read_rows(whole, "texts")
    (whole / "texts.jsonl").write_text(json.dumps(rows[0] | change) + "\n")
    with pytest.raises(InputError, match="texts.jsonl:1: expected a text, or null and its sha256"):
        RunDirectory(whole).read_texts()
