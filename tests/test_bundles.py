"""submit and verify: a run in one file, each way to forge it, and each way to harm who opens it."""

from __future__ import annotations

import json
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specbench.bundles.container import MANIFEST, describe_file, pack
from specbench.bundles.manifest import build_manifest, read_staged
from specbench.bundles.private import HIDDEN, build_mask, check_keys
from specbench.bundles.submit import write_bundle
from specbench.bundles.verify import ClaimError, check_bundle, open_bundle
from specbench.errors import InputError
from specbench.replay.recorded_counts import check_counts
from tests.conftest import Cli, Refuse
from tests.stored_pair import write_pair

Files = dict[str, bytes]
TRIALS, RUN_JSON, CONFIG = "run/trials.jsonl", "run/run.json", "run/config.yaml"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    write_bundle(write_pair(folder / "pair"), folder / "pair.zip", "0" * 64)
    return folder / "pair.zip"


def read_files(path: Path) -> Files:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def forge(made: Path, out: Path, change: Callable[[Files], None], claims: bool = False) -> Path:
    """The bundle with other files and their fingerprints listed; claims: with the numbers and alarms that follow from them."""
    files = read_files(made)
    manifest = json.loads(files.pop(MANIFEST))
    change(files)
    manifest["files"] = {name: describe_file(content) for name, content in files.items()}
    if claims:
        folder = out.parent / "forged"
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        manifest = build_manifest(read_staged(folder, manifest["run"]), manifest["files"], "0" * 64)
    out.write_bytes(pack({**files, MANIFEST: json.dumps(manifest).encode()}))
    return out


def change_rows(name: str, change: Callable[[list[dict[str, Any]]], None]) -> Callable[[Files], None]:
    def edit(files: Files) -> None:
        rows = [json.loads(line) for line in files[name].splitlines()]
        change(rows)
        files[name] = "".join(json.dumps(row) + "\n" for row in rows).encode()

    return edit


def find_row(rows: list[dict[str, Any]], method: str = "pld") -> dict[str, Any]:
    return next(row for row in rows if row["method"] == method and (max(row["accepted"]) > 0 or method != "pld"))


def find_claim_error(path: Path) -> str:
    with open_bundle(path) as bundle, pytest.raises(ClaimError) as caught:
        run, _ = check_bundle(bundle)
        for one in check_counts(run, bundle.read_prompts()):
            if one.failed:
                raise ClaimError(str(one))
    assert "\n" not in str(caught.value) and str(bundle.folder) not in str(caught.value)
    return str(caught.value)


# What holds


def test_submit_and_verify(cli: Cli, tmp_path: Path) -> None:
    run = write_pair(tmp_path / "pair")
    status, out, _ = cli("submit", str(run))
    assert status == 0 and "bundle: exports/pair.zip" in out and "alarm: the run: profiled" in out
    status, out, _ = cli("verify", "exports/pair.zip")
    assert status == 0 and "exports/pair.zip: its claims hold" in out
    assert "pld: all 14 replayed turns take the recorded steps" in out and "not proven: that the times" in out
    status, out, _ = cli("verify", "exports/pair.zip", "--json")
    document = json.loads(out)
    assert status == 0 and document["holds"] and {one["turns"] for one in document["replayed"]} == {14}


def test_the_same_run_gives_the_same_bytes(made: Path, tmp_path: Path) -> None:
    write_bundle(made.parent / "pair", tmp_path / "again.zip", "0" * 64)
    assert (tmp_path / "again.zip").read_bytes() == made.read_bytes()


def test_the_manifest_lists_every_alarm_and_file(made: Path) -> None:
    files = read_files(made)
    manifest = json.loads(files.pop(MANIFEST))
    assert manifest["files"] == {name: describe_file(content) for name, content in files.items()}
    assert "profiled" in next(alarm["message"] for alarm in manifest["alarms"] if alarm["level"] == "alarm")
    assert [name for name in files if name.startswith("certificates/")]
    assert {row["method"] for row in manifest["claims"]} == {"autoregressive", "pld"}


def test_texts_are_kept_only_under_an_open_licence(tmp_path: Path) -> None:
    closed = write_pair(
        tmp_path / "closed", {"run.json": lambda run: run.update(suite={"licence": "Apache-2.0 (the collection)"})}
    )
    manifest = write_bundle(closed, tmp_path / "closed.zip", "0")
    assert manifest["texts"] == "hashes"
    files = read_files(tmp_path / "closed.zip")
    assert not [row for row in map(json.loads, files[TRIALS].splitlines()) if row["output_ids"]]
    with open_bundle(tmp_path / "closed.zip") as bundle:
        run, _ = check_bundle(bundle)
        assert {one.why for one in check_counts(run, bundle.read_prompts())} == {
            "the run holds hashes in place of prompts and answers"
        }
    assert write_bundle(closed.parent / "closed", tmp_path / "again.zip", "0", without_texts=True)["claims"] == manifest["claims"]


# What submit refuses, and what it leaves out


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"run.json": lambda run: run.update(turns=8)}, "not finished: 4 turns are missing"),
        ({"run.json": lambda run: run.pop("turns")}, "does not say how many turns it needs"),
        (
            {"trials.jsonl": lambda row: row.update(error="401: Bearer " + "a" * 30, finish_reason="error")},
            "trials.jsonl holds what looks like a secret, Bearer…",
        ),
        ({"run.json": lambda run: run.update(note="hf_" + "a" * 30)}, "holds what looks like a secret, hf_aaa…"),
    ],
)
def test_submit_refuses_in_one_line(refuse: Refuse, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    assert said in refuse("submit", str(write_pair(tmp_path / "pair", changes)))


def test_submit_refuses_what_is_no_run_or_empty_and_writes_over_nothing(made: Path, tmp_path: Path) -> None:
    run = write_pair(tmp_path / "pair")
    with pytest.raises(InputError, match="already exists; choose another file"):
        write_bundle(run, made, "0")
    (run / "trials.jsonl").write_text("")
    with pytest.raises(InputError, match="holds no trial yet"):
        write_bundle(run, tmp_path / "out.zip", "0")
    with pytest.raises(InputError, match="is not a run directory"):
        write_bundle(tmp_path, tmp_path / "out.zip", "0")
    assert not (tmp_path / "out.zip").exists()


def test_no_folder_host_or_password_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "node17-gpu")
    home = Path.home()

    def tell(config: dict[str, Any]) -> None:
        config["target"]["path"] = f"{home}/clients/acme/model"
        config["engine"]["native"]["note"] = r"C:\Users\joe\model on node17-gpu"
        config["engine"]["vllm"] = {
            "urls": {"pld": "http://gpu9.acme.example:8000/v1"},
            "api_key": "abc",
            "command": "serve /data/acme/m",
        }

    def fail(row: dict[str, Any]) -> None:
        row.update(error=f"no {home}/clients/acme/weights on node17-gpu", finish_reason="error")

    write_bundle(write_pair(tmp_path / "pair", {"config.yaml": tell, "trials.jsonl": fail}), tmp_path / "out.zip", "0")
    everything = b"\n".join(read_files(tmp_path / "out.zip").values()).decode()
    for private in (str(home), "clients", "acme", "joe", "node17", "gpu9", "abc", str(tmp_path)):
        assert private not in everything.replace("fabc", ""), private
    assert "no weights on host" in everything
    with open_bundle(tmp_path / "out.zip") as bundle:
        check_bundle(bundle)


def test_masking_leaves_what_is_public() -> None:
    public = {"url": "https://example.org/a/b.jsonl", "path": "org/model", "rate": "1/2", "words": "and/or, 50 tokens/s", "n": 3}
    assert build_mask()(public) == public
    assert build_mask()({"password": "x", "a": ["/x/y"]}) == {"password": HIDDEN, "a": ["y"]}
    check_keys("sk-short and hf_short", "it")


# Forged bundles: exit status 1


def change_count(rows: list[dict[str, Any]]) -> None:
    find_row(rows)["accepted"][0] += 1


def shift_count(rows: list[dict[str, Any]], method: str = "pld") -> None:
    """Move an accepted token to another step, in every repeat: sums, rules and alarms stay as they were."""
    first = find_row(rows, method)
    step = next(place for place, kept in enumerate(first["accepted"]) if kept > 0)
    other = next(place for place, deep in enumerate(first["depth"]) if deep > first["accepted"][place] and place != step)
    for row in rows:
        if (row["method"], row["question_id"], row["turn"]) == (method, first["question_id"], first["turn"]):
            for name in ("accepted", "committed"):
                row[name][step] -= 1
                row[name][other] += 1


def shift_count_once(rows: list[dict[str, Any]]) -> None:
    others = [row for row in rows if row["repeat"] > 0]
    shift_count(others)


def swap_times(rows: list[dict[str, Any]]) -> None:
    one, *others = (row for row in rows if row["method"] == "pld")
    other = next(row for row in others if row["task"] != one["task"])
    for name in ("prefill_s", "decode_s", "draft_s", "verify_s"):
        one[name], other[name] = other[name], one[name]


def drop_turn(rows: list[dict[str, Any]]) -> None:
    rows.pop()


def change_prompt(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        row["prompt_sha256"] = "0" * 64


@pytest.mark.parametrize(
    ("change", "claims", "said"),
    [
        (change_count, False, "run/trials.jsonl:"),
        (shift_count_once, False, "1 alarm not listed: pld"),
        (shift_count_once, True, "pld: 1 of 14 replayed turns take other steps than recorded"),
        (shift_count, False, "pld: 2 of 14 replayed turns take other steps than recorded"),
        (swap_times, False, "its records give"),
        (drop_turn, False, "1 turns are missing"),
        (change_prompt, False, "prompts.jsonl lacks the prompt of question"),
    ],
)
def test_changed_records_are_found(
    made: Path, tmp_path: Path, change: Callable[[list[dict[str, Any]]], None], claims: bool, said: str
) -> None:
    assert said in find_claim_error(forge(made, tmp_path / "forged.zip", change_rows(TRIALS, change), claims))
    files = read_files(made)
    change_rows(TRIALS, change)(files)
    (tmp_path / "changed.zip").write_bytes(pack(files))
    assert "run/trials.jsonl was changed after the bundle was made" in find_claim_error(tmp_path / "changed.zip")


def test_a_swapped_time_with_every_claim_computed_again_is_not_found(made: Path, tmp_path: Path) -> None:
    """What docs/leaderboard.md says cannot be proven."""
    with open_bundle(forge(made, tmp_path / "forged.zip", change_rows(TRIALS, swap_times), claims=True)) as bundle:
        run, _ = check_bundle(bundle)
        assert not [one for one in check_counts(run, bundle.read_prompts()) if one.failed]


def claim_more(manifest: dict[str, Any]) -> None:
    manifest["claims"][-1]["speedup"] *= 1.01


def hide_alarm(manifest: dict[str, Any]) -> None:
    manifest["alarms"] = [alarm for alarm in manifest["alarms"] if "profiled" not in alarm["message"]]


def soften_alarm(manifest: dict[str, Any]) -> None:
    manifest["alarms"][0]["level"] = "notice"


def drop_claim(manifest: dict[str, Any]) -> None:
    manifest["claims"].pop()


def list_more(manifest: dict[str, Any]) -> None:
    manifest["files"]["run/texts2.jsonl"] = {"bytes": 1, "sha256": "0" * 64}


def rename_device(manifest: dict[str, Any]) -> None:
    manifest["about"]["device"] = "a slower one"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (claim_more, "pld on overall: speedup is"),
        (hide_alarm, "1 alarm not listed: the run"),
        (soften_alarm, "1 alarm not listed: the run"),
        (drop_claim, "claims holds 13 rows, its records give 14"),
        (list_more, "run/texts2.jsonl is missing"),
        (rename_device, "about: device is 'a slower one'"),
    ],
)
def test_a_manifest_that_claims_something_else(
    made: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    files = read_files(made)
    manifest = json.loads(files[MANIFEST])
    change(manifest)
    (tmp_path / "other.zip").write_bytes(pack({**files, MANIFEST: json.dumps(manifest).encode()}))
    assert said in find_claim_error(tmp_path / "other.zip")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (TRIALS, b"[" * 100_000 + b"\n", "run/trials.jsonl:1: "),
        (TRIALS, b'{"a": "\xff"}\n', "not UTF-8"),
        (RUN_JSON, b'{"a": ' * 5000 + b"1" + b"}" * 5000, "run/run.json: nested too deeply"),
        (CONFIG, b"a: [" * 3000, "run/config.yaml"),
        (CONFIG, b"- 1\n", "run/config.yaml: expected a mapping"),
    ],
)
def test_records_that_do_not_pass_the_door(made: Path, tmp_path: Path, name: str, content: bytes, said: str) -> None:
    assert said in find_claim_error(forge(made, tmp_path / "other.zip", lambda files: files.update({name: content})))


def test_missing_extra_and_foreign_files(made: Path, tmp_path: Path) -> None:
    files = read_files(made)
    certificate = next(name for name in files if name.startswith("certificates/"))
    less = {name: content for name, content in files.items() if name != RUN_JSON}
    more = files | {"certificates/mine/certificate.json": b"{}"}
    for changed, said in (less, f"{RUN_JSON} is missing"), (more, "certificates/mine/certificate.json is not listed"):
        (tmp_path / "changed.zip").write_bytes(pack(changed))
        assert said in find_claim_error(tmp_path / "changed.zip")
    foreign = files[certificate].replace(b'"bfloat16"', b'"float32"')
    forged = forge(made, tmp_path / "foreign.zip", lambda held: held.update({certificate: foreign}))
    assert "a certificate of another target" in find_claim_error(forged)


def test_a_strangers_class_is_never_imported(made: Path, tmp_path: Path) -> None:
    def name_class(files: Files) -> None:
        files[CONFIG] = files[CONFIG].replace(b"methods.pld.PromptLookup", b"antigravity.Fly")

    with open_bundle(forge(made, tmp_path / "other.zip", name_class, claims=True)) as bundle:
        run, _ = check_bundle(bundle)
        found = {one.method: one.why for one in check_counts(run, bundle.read_prompts())}
    assert found["pld"] == "it needs more than the ids of prompts and answers"


# The command, and what the file itself may do: tests/test_bundle_files.py


def test_verify_says_no_in_one_line(made: Path, cli: Cli, tmp_path: Path) -> None:
    path = forge(made, tmp_path / "forged.zip", change_rows(TRIALS, shift_count))
    status, out, err = cli("verify", str(path))
    assert (status, err) == (1, "") and out.count("\n") == 1 and "replayed turns take other steps" in out
    status, out, _ = cli("verify", "--json", str(path))
    assert status == 1 and json.loads(out)["holds"] is False
