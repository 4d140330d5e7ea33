"""What lies on disk is typed when it is read: a file that no run wrote is refused with its place, in one line."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specbench.analysis.loaded_run import read_run
from specbench.errors import InputError
from specbench.records.certificates import read_certificate
from specbench.records.files import JsonLines
from specbench.records.run_directory import RunDirectory, find_runs
from specbench.records.trial import hash_ids
from tests.fake_run import failed, trial, write_run
from tests.mutations import dump
from tests.test_certify import certificate
from tests.whole_run import copy_with, write_whole_run


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_whole_run(tmp_path_factory.mktemp("whole") / "run")


# Trials

TRIAL = trial("pld", [2, 3], 0.5, output_ids=[1] * 6, output_sha256=hash_ids([1] * 6)).to_row()
IMPOSSIBLE: list[tuple[dict[str, Any], str]] = [
    ({"decode_s": -0.5}, "decode_s is -0.5, expected a number from 0 to 1e+08, or null"),
    ({"decode_s": None}, "decode_s is null in a turn that did not fail"),
    ({"decode_s": 10**400}, "decode_s is 1000"),
    ({"decode_s": True}, "decode_s is true"),
    ({"decode_s": "0.5"}, "decode_s is '0.5'"),
    ({"decode_s": 0.0}, "make 0 s for 6 tokens"),
    ({"decode_s": 1e-300}, "make 1e-300 s for 6 tokens"),
    ({"prefill_s": -1}, "prefill_s is -1"),
    ({"new_tokens": -5}, "new_tokens is -5, expected a whole number from 0"),
    ({"new_tokens": 0}, "new_tokens is 0 in a turn that did not fail"),
    ({"new_tokens": 7}, "output_ids holds 6 ids, but new_tokens is 7"),
    ({"new_tokens": 7, "output_ids": None}, "new_tokens is 7, but prefill's token and committed make 6"),
    ({"new_tokens": True}, "new_tokens is true"),
    ({"new_tokens": 6.0}, "new_tokens is 6.0"),
    ({"output_ids": [1] * 5 + [2]}, "output_sha256 is not that of output_ids"),
    ({"output_ids": [1, 2, -1]}, r"output_ids[2] is -1"),
    ({"output_sha256": "F" * 64}, "64 hexadecimal digits"),
    ({"prompt_sha256": "prompt"}, "64 hexadecimal digits"),
    ({"steps": 3}, "drafted holds 2 counts, but steps is 3"),
    ({"steps": None}, "drafted holds 2 counts, but steps is None"),
    ({"committed": None}, "expected all of them, or none"),
    ({"committed": [2, 3, 0]}, "committed holds 3 counts"),
    ({"committed": [0, 5]}, "step 1: drafted 2, nodes 3, depth 2, accepted 1, committed 0"),
    ({"accepted": [1, 3]}, "step 2"),
    ({"depth": [1, 9]}, "step 2"),
    ({"nodes": [1, 1]}, "step 1"),
    ({"target_forwards": 1}, "target_forwards is 1 in 2 steps"),
    ({"draft_s": 0.3, "verify_s": 0.3}, "draft_s and verify_s exceed decode_s"),
    ({"retokenised": 10**6}, "retokenised is 1000000 for 6 new_tokens"),
    ({"energy_j": -1}, "energy_j is -1"),
    ({"peak_memory_bytes": 2**60}, "peak_memory_bytes is 11529"),
    ({"throttled": "hot"}, "throttled is 'hot', expected a list of text, or null"),
    ({"question_id": 1.5}, "question_id is 1.5"),
    ({"question_id": True}, "question_id is true"),
    ({"turn": -1}, "turn is -1"),
    ({"repeat": -1}, "repeat is -1"),
    ({"order": "first"}, "order is 'first'"),
    ({"finish_reason": "stop"}, "finish_reason is 'stop', expected eos or stop_string or length or capacity or error"),
    ({"state": None}, "state is null, expected cold or warm"),
    ({"kind": "true"}, "kind is 'true'"),
    ({"kind": "replayed"}, "expected null in a replayed turn"),
    ({"task": "overall"}, "task is overall, which means all tasks"),
    ({"method": ""}, "method is '', expected text, not blank"),
    ({"method": "a\x1b[2Jb"}, "method is 'a\\x1b[2Jb'"),
    ({"schema": True}, "schema is true"),
]


@pytest.mark.parametrize(("change", "said"), IMPOSSIBLE, ids=[f"{change}"[:60] for change, _ in IMPOSSIBLE])
def test_a_turn_that_cannot_have_happened_is_refused_with_its_line(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    run = write_run(tmp_path, [trial("autoregressive", [1] * 5, 1.0)])
    with (tmp_path / "trials.jsonl").open("a") as file:
        file.write(json.dumps({**TRIAL, **change}) + "\n")
    with pytest.raises(InputError) as refused:
        run.read_trials()
    assert str(refused.value).startswith(f"{tmp_path / 'trials.jsonl'}:2: ") and said in str(refused.value)


def test_a_failed_turn_has_no_times_and_an_imported_one_its_own_counts(tmp_path: Path) -> None:
    rows = [
        failed("pld", kind="imported"),
        trial("sps", [2], 0.5, kind="imported", new_tokens=9, drafted=None, nodes=None, depth=None),
    ]
    assert write_run(tmp_path, rows).read_trials() == rows


# What several rows have in common


SECOND = {"attempt": 2, "arms": 2}
TWICE: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {"decode_s": 0.4}, "pld has this turn twice, both times as attempt 1: two runs in one file?"),
    ({}, {"state": "warm"}, "pld has this turn twice"),
    (SECOND, SECOND, "pld has this turn twice, both times as attempt 2"),
    (SECOND, SECOND | {"method": "sps", "arms": 3}, "arms is 3 in attempt 2, but 2 in an earlier row"),
    ({}, SECOND | {"state": "warm"}, "state is warm in attempt 2, expected cold"),
]


@pytest.mark.parametrize(("first", "second", "said"), TWICE, ids=[said for *_, said in TWICE])
def test_two_rows_that_no_run_writes_are_refused(
    tmp_path: Path, first: dict[str, Any], second: dict[str, Any], said: str
) -> None:
    rows = [dataclasses.replace(trial("pld", [2], 0.5), **changes) for changes in (first, second)]
    with pytest.raises(InputError) as refused:
        write_run(tmp_path, rows).read_trials()
    assert str(refused.value).startswith(f"{tmp_path / 'trials.jsonl'}:2: {said}")


def test_a_question_belongs_to_one_task(tmp_path: Path) -> None:
    run = write_run(tmp_path, [trial("autoregressive", [1], 1.0), trial("pld", [1], 1.0, task="qb")])
    with pytest.raises(
        InputError, match=r"trials.jsonl:2: question 1 belongs to fake-suite/qb/qa, but to fake-suite/qa/qa in an earlier row"
    ):
        run.read_trials()


# Lines and documents

LINES: list[tuple[bytes, str]] = [
    (b'{"a": NaN}', "NaN is not a number"),
    (b'{"a": 1, "a": 2}', "the key 'a' is given twice"),
    (b'{"a": "\\ud800"}', "a lone surrogate"),
    (b'{"a": "\xed\xa0\x80"}', "not UTF-8 at byte 7"),
    (b'{"a": "\xff"}', "not UTF-8 at byte 7"),
    (b'\xef\xbb\xbf{"a": 1}', "not a JSON object"),
    (b"\x00\x00\x00", "not a JSON object"),
    (b"[" * 100_000, "nested too deeply"),
    (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
    (b"[1]", "not a JSON object"),
    (b'{"a": ' + b"9" * 5000 + b"}", "not a JSON object"),
]


@pytest.mark.parametrize(("line", "said"), LINES, ids=[said for _, said in LINES])
def test_a_line_that_is_no_object_is_refused_and_only_a_torn_last_one_dropped(tmp_path: Path, line: bytes, said: str) -> None:
    file = tmp_path / "rows.jsonl"
    for content in (b'{"a": 0}\n' + line + b'\n{"a": 3}\n', b'{"a": 0}\n' + line + b"\n"):
        file.write_bytes(content)
        with pytest.raises(InputError, match="rows.jsonl:2: ") as refused:
            list(JsonLines(file).read_numbered())
        assert said in str(refused.value)


def test_a_surrogate_pair_is_a_character(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"a": "\\ud83d\\ude00"}\n')
    assert [row for _, row in JsonLines(tmp_path / "rows.jsonl").read_numbered()] == [{"a": "\N{GRINNING FACE}"}]


DOCUMENTS: list[tuple[str, bytes, str]] = [
    ("run.json", b'{"started": 5}', "started is 5, expected text, without control characters, or null"),
    ("run.json", b'{"started": "yesterday"}', "started is 'yesterday', expected a time"),
    ("run.json", b'{"device": "cpu"}', "device is 'cpu', expected a mapping, or null"),
    ("run.json", b'{"device": {"name": 5}}', "device.name is 5"),
    ("run.json", b'{"turns": true}', "turns is true"),
    ("run.json", b'{"turns": -1}', "turns is -1"),
    ("run.json", b'{"leakage": {"pld": [{"name": "a"}]}}', "leakage.pld[0].leaked is missing"),
    (
        "run.json",
        b'{"leakage": {"pld": [{"name": "a", "tokens": 1, "questions": 0, "leaked": 5}]}}',
        "leakage.pld: leaked is 5, but questions 0",
    ),
    ("run.json", b'{"baseline": [{"engine": "a", "dtype": "b", "tokens_per_second": [0]}]}', "tokens_per_second[0] is 0"),
    ("run.json", b'{"baseline": [{"engine": "a", "dtype": "b", "tokens_per_second": []}]}', "at least one"),
    ("run.json", b'{"forward_ms": [{"rows": 0, "milliseconds": [1]}]}', "forward_ms[0].rows is 0"),
    (
        "run.json",
        b'{"forward_ms": [{"rows": 1, "milliseconds": [1]}, {"rows": 2, "milliseconds": []}]}',
        "forward_ms: expected as many",
    ),
    ("run.json", b'{"x": 1e400, "y": {"z": 99999999999999999999}}', "a number out of range"),
    ("run.json", b'{"x": ' + b"[" * 500 + b"]" * 500 + b"}", "nested too deeply"),
    ("run.json", b"\xef\xbb\xbf{}", "starts with a byte order mark"),
    ("run.json", b'{"x": 1, "x": 2}', "the key 'x' is given twice"),
    ("run.json", b"{} " * 2**23, "holds more than"),
    ("config.yaml", b"sampling: 5", "sampling is 5, expected a mapping, or null"),
    ("config.yaml", b"sampling: {temperature: hot}", "sampling.temperature is 'hot'"),
    ("config.yaml", b"repeats: -1", "repeats is -1"),
    ("config.yaml", b"a: 1\na: 2", ":1: cannot be read: the key 'a' is given twice"),
    ("config.yaml", b"a: \x00", "cannot be read"),
    ("config.yaml", b"a: \xff", "not UTF-8 at byte 3"),
    ("config.yaml", b'a: "\\ud800"', "a lone surrogate"),
    ("config.yaml", b"a: 2026-01-01", "a date"),
    ("config.yaml", b"a: [{b: .nan}]", "a number out of range"),
    ("config.yaml", b"a: -.inf", "a number out of range"),
    ("config.yaml", b"1: a", "a key that is not text"),
    ("config.yaml", b"a: {b: 1, 2: 3}", "a key that is not text"),
    ("config.yaml", b"target: x", "target is 'x', expected a mapping, or null"),
    ("config.yaml", b"engine: native", "engine is 'native', expected a mapping, or null"),
    ("config.yaml", b"task: [qa]", "task is a list of 1, expected a mapping, or null"),
    ("run.json", b'{"codes": {"pld": []}}', "codes.pld is a list of 0, expected text"),
    ("run.json", b'{"checkpoints": {"eagle": 5}}', "checkpoints.eagle is 5, expected text"),
    ("config.yaml", b"&a [*a]", "found list"),
    ("config.yaml", b"a: &a [*a]", "nested too deeply"),
    ("config.yaml", b"[" * 50_000, "nested too deeply"),
    ("config.yaml", b"a: !!python/object/apply:os.system [x]", "cannot be read: could not determine a constructor"),
    ("config.yaml", b"a: !!int x", "cannot be read"),
    (
        "config.yaml",
        b"a0: &a0 [1, 1]\n" + b"".join(b"a%d: &a%d [%s]\n" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, 20)),
        "too large",
    ),
    ("texts.jsonl", b'{"method": "pld", "question_id": 1, "turn": 0, "text": 5, "score": null}\n', "texts.jsonl:1: text is 5"),
    ("texts.jsonl", b'{"method": "pld", "question_id": 1, "turn": 0, "text": "", "score": 1.5}\n', "texts.jsonl:1: score is 1.5"),
]


@pytest.mark.parametrize(("file", "content", "said"), DOCUMENTS, ids=[f"{file}-{said}" for file, _, said in DOCUMENTS])
def test_a_document_is_typed_and_named(stored: Path, tmp_path: Path, file: str, content: bytes, said: str) -> None:
    folder = copy_with(stored, tmp_path / "run", file, content)
    with pytest.raises(InputError) as refused:
        read_run(folder)
    assert str(refused.value).startswith(str(folder / file)) and said in str(refused.value)


def test_prompts_are_those_of_their_fingerprint(stored: Path, tmp_path: Path) -> None:
    row = {"question_id": 1, "turn": 0, "prompt_ids": [3], "sha256": hash_ids([4]), "method": None}
    for change, said in (
        ({}, "sha256 is not that of prompt_ids"),
        ({"prompt_ids": [-1]}, r"prompt_ids\[0\] is -1"),
        ({"x": 1}, "not a"),
    ):
        folder = copy_with(stored, tmp_path / "run", "prompts.jsonl", dump(row | change) + "\n")
        with pytest.raises(InputError, match=f"prompts.jsonl:1: {said}"):
            RunDirectory(folder).read_prompts()


CERTIFICATES: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda plain: plain.update(greedy=[]), "expected one verdict each on the same methods"),
    (lambda plain: plain["greedy"][0].update(class_="perfect"), "greedy[0].class_ is 'perfect'"),
    (lambda plain: plain["greedy"][0]["tests"]["texts"].update(texts=-1), "tests.texts.texts is -1"),
    (lambda plain: plain["greedy"][0]["tests"]["texts"].update(equal=5), "5 of 1 texts are equal"),
    (lambda plain: plain["greedy"][0]["tests"]["texts"].update(equal=0), "its tests say otherwise"),
    (lambda plain: plain["greedy"][0]["tests"].update(order={"texts": 9, "differing": 1}), "its tests say otherwise"),
    (lambda plain: plain["config"].update(sampling={}), "config.sampling.max_new_tokens is missing"),
    (lambda plain: plain.update(schema=2), "schema version 2"),
    (lambda plain: plain.update(more=2), "unknown fields ['more']"),
    (lambda plain: plain.update(level=5), "level is 5"),
]


@pytest.mark.parametrize(("spoil", "said"), CERTIFICATES, ids=[said for _, said in CERTIFICATES])
def test_a_certificate_is_typed(tmp_path: Path, spoil: Callable[[dict[str, Any]], object], said: str) -> None:
    path = certificate().write(tmp_path)
    plain = json.loads(path.read_text())
    spoil(plain)
    path.write_text(json.dumps(plain))
    with pytest.raises(InputError) as refused:
        read_certificate(path)
    assert str(refused.value).startswith(f"{path}: not a certificate: ") and said in str(refused.value)


# What is stored


@pytest.mark.parametrize("folder", find_runs(Path(__file__).parents[1] / "results" / "reference"), ids=lambda path: path.name)
def test_a_reference_run_passes_the_door(folder: Path) -> None:
    run = RunDirectory(folder)
    assert run.read_trials() and run.read_prompts() and run.read_texts() and run.read_config() and run.read_provenance()
