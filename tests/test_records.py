"""Records survive a kill, and a broken file is named."""

import json
import tracemalloc
from pathlib import Path

import pytest

from specbench.errors import InputError
from specbench.records.files import read_bytes, write_atomic
from specbench.records.run_directory import RunDirectory
from specbench.records.trial import Prompt, Trial, hash_ids
from tests.fake_run import failed, trial, write_run

DESIGN_FIELDS = [
    "schema",
    "run_id",
    "suite",
    "task",
    "category",
    "question_id",
    "turn",
    "turns",
    "context",
    "method",
    "seed",
    "repeat",
    "order",
    "state",
    "kind",
    "prompt_tokens",
    "prompt_sha256",
    "new_tokens",
    "finish_reason",
    "steps",
    "target_forwards",
    "draft_forwards",
    "drafted",
    "nodes",
    "depth",
    "accepted",
    "committed",
    "prefill_s",
    "decode_s",
    "draft_s",
    "verify_s",
    "output_ids",
    "output_sha256",
    "retokenised",
    "peak_memory_bytes",
    "energy_j",
    "throttled",
    "disturbed",
    "attempt",
    "arms",
    "batch",
    "group",
    "place",
    "concurrency",
    "client",
    "began_s",
    "client_first_s",
    "client_last_s",
    "sums",
    "text_sha256",
    "error",
]


def test_a_trial_has_the_fields_of_the_format_and_comes_back_equal() -> None:
    one = trial("pld", [2, 3], 0.5, output_ids=[1, 2])
    assert list(one.to_row()) == DESIGN_FIELDS
    assert Trial.from_row(json.loads(json.dumps(one.to_row()))) == one


def test_another_schema_an_unknown_and_a_missing_field_are_refused() -> None:
    row = trial("pld", [2], 0.5).to_row()
    with pytest.raises(InputError, match="schema version 2"):
        Trial.from_row({**row, "schema": 2})
    with pytest.raises(InputError, match=r"unknown fields .'colour'.*missing fields .'task'"):
        Trial.from_row({key: value for key, value in {**row, "colour": 1}.items() if key != "task"})


def test_what_is_finished_is_known_by_its_key(tmp_path: Path) -> None:
    trials = [
        trial("pld", [2], 0.5),
        trial("pld", [2], 0.5, repeat=1, question_id="a"),
        failed("sps"),
        failed("sps", turn=1),
    ]
    run = write_run(tmp_path / "run", trials)
    assert run.read_trials() == trials
    assert {trial.key for trial in run.read_trials()} == {
        ("pld", 0, 1, 0),
        ("pld", 1, "a", 0),
        ("sps", 0, 1, 0),
        ("sps", 0, 1, 1),
    }


def test_a_warm_turn_that_was_run_again_counts_once_with_its_last_record(tmp_path: Path) -> None:
    run = write_run(tmp_path, [trial("pld", [2], 0.5, state="warm"), trial("pld", [2], 0.4, state="warm")])
    assert [one.decode_s for one in run.read_trials()] == [0.4]


@pytest.mark.parametrize("torn", [b'{"schema": 1, "run_', '{"a": "ü'.encode()[:-1], b"\n", b"[1]"])
def test_a_torn_last_line_is_dropped_and_cut_off_before_the_next(tmp_path: Path, torn: bytes) -> None:
    run = write_run(tmp_path, [trial("pld", [2], 0.5)])
    whole = (tmp_path / "trials.jsonl").read_bytes()
    (tmp_path / "trials.jsonl").write_bytes(whole + torn)
    assert len(run.read_trials()) == 1
    run.repair()
    assert (tmp_path / "trials.jsonl").read_bytes() == whole
    run.append_trials(trial("sps", [2], 0.5))
    assert [one.method for one in run.read_trials()] == ["pld", "sps"]


def test_a_whole_last_line_without_its_newline_is_kept(tmp_path: Path) -> None:
    run = write_run(tmp_path, [trial("pld", [2], 0.5)])
    file = tmp_path / "trials.jsonl"
    file.write_bytes(file.read_bytes().rstrip(b"\n"))
    run.repair()
    run.append_trials(trial("sps", [2], 0.5))
    assert [one.method for one in run.read_trials()] == ["pld", "sps"]


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path, [trial("pld", [2], 0.5)])
    with (tmp_path / "trials.jsonl").open("a") as file:
        file.write("{broken\n" + json.dumps(trial("sps", [2], 0.5).to_row()) + "\n")
    with pytest.raises(InputError, match=r"trials\.jsonl:2: not a JSON object"):
        run.read_trials()


def test_a_wrong_schema_is_named_with_its_line(tmp_path: Path) -> None:
    run = write_run(tmp_path, [trial("pld", [2], 0.5), trial("sps", [2], 0.5, schema=7)])
    with pytest.raises(InputError, match=r"trials\.jsonl:2: schema version 7"):
        run.read_trials()


def test_a_directory_that_is_no_run_is_refused(tmp_path: Path) -> None:
    for name in ("read_config", "read_trials", "read_provenance"):
        with pytest.raises(InputError, match="not a run directory"):
            getattr(RunDirectory(tmp_path), name)()
    (tmp_path / "config.yaml").write_text("- a list\n")
    with pytest.raises(InputError, match="expected a mapping"):
        RunDirectory(tmp_path).read_config()


def test_prompts_come_back(tmp_path: Path) -> None:
    run = write_run(tmp_path, [])
    prompts = [Prompt(question_id=1, turn=0, prompt_ids=[3, 4], sha256=hash_ids([3, 4]))]
    prompts.append(Prompt(question_id=1, turn=1, prompt_ids=[5], sha256=hash_ids([5]), method="pld", strata={"a": "b"}))
    for prompt in prompts:
        run.append_prompt(prompt)
    assert run.read_prompts() == prompts


def test_a_prompt_of_an_older_run_has_no_strata() -> None:
    row = {"question_id": 1, "turn": 0, "prompt_ids": [5], "sha256": hash_ids([5]), "method": None}
    assert Prompt.from_row(row).strata is None
    with pytest.raises(InputError, match=r"strata\.level is 3"):
        Prompt.from_row(row | {"strata": {"level": 3}})


def test_a_write_that_fails_leaves_the_old_file_and_no_rubbish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomic(tmp_path / "run.json", "old")

    def broken(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("specbench.records.files.os.replace", broken)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(tmp_path / "run.json", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    assert (tmp_path / "run.json").read_text() == "old"


def test_reading_a_small_file_takes_little_memory(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 100)
    tracemalloc.start()
    assert read_bytes(tmp_path / "a") == b"x" * 100
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20, f"{peak:,} bytes"
    with pytest.raises(InputError, match="a: holds more than 99 bytes"):
        read_bytes(tmp_path / "a", most=99)
