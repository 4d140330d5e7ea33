"""Regression tracking: what fails, what passes, what is refused, and how often each happens by chance."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import psutil
import pytest

from specbench import ROOT
from specbench.analysis.loaded_run import read_run
from specbench.cli.output import format_document
from specbench.compare.checkout import WORKER, Checkout
from specbench.compare.comparison import compare_checkouts, compare_runs
from specbench.compare.gate import RUN_SD
from specbench.compare.plan import plan_run
from specbench.compare.render import build_document, format_comparison, format_notes, write_junit
from specbench.compare.runs import compute_log_ratios
from specbench.errors import InputError
from specbench.exchange.trackers import export_asv, export_bencher, export_github
from specbench.records.run_directory import RunDirectory
from specbench.records.trial import Trial, hash_ids
from tests import fake_run
from tests.conftest import Cli, Refuse, Tiny
from tests.fake_run import CONFIG, PROVENANCE, made_up_trials, write_run

pytestmark = pytest.mark.full

TASKS = ("qa", "rag", "translation")
METHODS = {"pld": 0.4, "sps": 0.7}
POINT = {"name": str, "unit": str, "value": float, "range": str, "extra": str}  # of github-action-benchmark


def noisy(trials: Sequence[Trial], seed: int, slower: dict[str, float] | None = None, noise: float = 0.01) -> list[Trial]:
    """The same turns on another day: all of them up to 5 % off together, each by its own noise, some methods slower."""
    rng = np.random.default_rng(seed)
    day = rng.normal(0, 0.03)
    of_run = {method: rng.normal(0, RUN_SD / 2) for method in dict.fromkeys(trial.method for trial in trials)}
    made = []
    for trial in trials:
        factor = math.exp(day + of_run[trial.method] + rng.normal(0, noise)) * (1 + (slower or {}).get(trial.method, 0))
        made.append(replace(trial, prefill_s=(trial.prefill_s or 0) * factor, decode_s=(trial.decode_s or 0) * factor))
    return made


def pair(tmp_path: Path, seed: int = 1, **slower: float) -> tuple[Path, Path]:
    trials = made_up_trials(METHODS, TASKS, questions=8)
    return write_run(tmp_path / "old", noisy(trials, 0)).path, write_run(tmp_path / "new", noisy(trials, seed, slower)).path


def test_equal_runs_pass_and_a_slow_method_fails(tmp_path: Path) -> None:
    same = compare_runs(*pair(tmp_path / "same"))
    assert same.verdict != "fail" and {one.verdict for one in same.changes} <= {"pass", "undecided"}
    slow = compare_runs(*pair(tmp_path / "slow", pld=0.1))
    assert slow.verdict == "fail" and {one.what: one.verdict for one in slow.changes}["pld over autoregressive"] == "fail"
    assert slow.changes[0].ratio.estimate == pytest.approx(1 / 1.1, abs=0.03)
    assert not any(one.differing for one in slow.counted)


def test_a_turn_that_is_counted_otherwise_fails(tmp_path: Path) -> None:
    old, new = pair(tmp_path)
    trials = RunDirectory(new).read_trials()
    place = next(place for place, trial in enumerate(trials) if trial.method == "pld")
    trials[place] = replace(trials[place], output_sha256=hash_ids([1]))
    found = compare_runs(old, write_run(tmp_path / "changed", trials).path)
    assert found.verdict == "fail" and "pld: 1 of 48 turns have a different output_sha256" in format_notes(found)


@pytest.mark.parametrize(
    ("change_", "told"),
    [
        ({"config": {"seed": 1}}, "seed is 1, not absent; --factor seed allows it to differ"),
        ({"about": {"dtype": "float32"}}, "dtype is float32, not bfloat16"),
        ({"about": {"machine": {"cpu": "another"}}}, "machine.cpu is another"),
        ({"about": {"versions": {"torch": "0.1", "transformers": "0.0"}}}, "versions.torch is 0.1"),
    ],
)
def test_runs_that_differ_in_something_else_are_refused(tmp_path: Path, change_: dict[str, dict[str, Any]], told: str) -> None:
    old, new = pair(tmp_path)
    RunDirectory(new).write_config(CONFIG | change_.get("config", {}))
    RunDirectory(new).write_provenance(PROVENANCE | change_.get("about", {}))
    with pytest.raises(InputError, match=told):
        compare_runs(old, new)
    factor = told.split(" is ")[0]
    assert compare_runs(old, new, [factor]).reference == "old"


def test_a_factor_that_is_no_fact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--factor versions.toch: the runs have no such fact; the nearest is versions.torch"):
        compare_runs(*pair(tmp_path), ["versions.toch"])


def test_another_commit_and_further_methods_are_no_difference(tmp_path: Path) -> None:
    old, new = pair(tmp_path)
    RunDirectory(new).write_config(CONFIG | {"method": {"pld": {}, "sps": {}, "rest": {"nodes": 3}}})
    RunDirectory(new).write_provenance(PROVENANCE | {"git": {"commit": "b"}, "code_sha256": "c", "codes": {"pld": "d"}})
    assert compare_runs(old, new).new == "new"


def test_a_run_is_not_its_own_reference(tmp_path: Path) -> None:
    _, new = pair(tmp_path)
    with pytest.raises(InputError, match="holds no run but new itself"):
        compare_runs(new, new)
    assert compare_runs(tmp_path, new).reference == "old"


def test_a_folder_whose_older_runs_lack_a_method(tmp_path: Path) -> None:
    trials = made_up_trials(METHODS, TASKS, questions=8)
    older = [one for one in trials if one.method != "sps"]
    for day, rows in enumerate((older, older, trials)):
        write_run(tmp_path / "rolling" / f"r{day}", noisy(rows, day), started=f"2026-11-{day + 1:02}T00:00:00Z")
    found = compare_runs(tmp_path / "rolling", write_run(tmp_path / "new", noisy(trials, 99)).path)
    assert {one.what for one in found.changes} == {
        "pld over autoregressive",
        "sps over autoregressive",
    } and found.verdict != "fail"


def test_a_method_with_another_setting_is_not_a_further_one(tmp_path: Path) -> None:
    old, new = pair(tmp_path)
    RunDirectory(old).write_config(CONFIG | {"method": {"pld": {"max_ngram": 3}, "sps": {}}})
    RunDirectory(new).write_config(CONFIG | {"method": {"pld": {"max_ngram": 3, "length": 9}, "sps": {}, "rest": {"nodes": 3}}})
    with pytest.raises(InputError, match="method.pld.length is 9, not absent"):
        compare_runs(old, new)


def test_another_datastore_is_another_run(tmp_path: Path) -> None:
    old, new = pair(tmp_path)
    for run, print_ in ((old, "a"), (new, "b")):
        store = {"name": "store", "sha256": print_, "tokens": 9, "questions": 4, "leaked": 0}
        RunDirectory(run).write_provenance(PROVENANCE | {"leakage": {"pld": [store]}})
    with pytest.raises(InputError, match="method.pld.datastores"):
        compare_runs(old, new)


def test_a_version_that_stopped_is_nothing_to_compare_with(tmp_path: Path) -> None:
    trials = made_up_trials({"pld": 0.4}, ["qa"], questions=4)
    paired = [replace(one, method=f"{one.method}@reference", finish_reason="error", error="gone") for one in trials]
    with pytest.raises(InputError, match="stopped, so there is nothing to compare with: gone"):
        compare_checkouts(write_run(tmp_path / "both", [*trials, *paired]).path)


def test_what_the_reference_has_must_be_there(tmp_path: Path) -> None:
    old, _ = pair(tmp_path)
    trials = RunDirectory(old).read_trials()
    fewer = write_run(tmp_path / "fewer", [trial for trial in trials if trial.method != "sps"]).path
    with pytest.raises(InputError, match="fewer has no method sps"):
        compare_runs(old, fewer)
    shorter = write_run(tmp_path / "shorter", trials[:-1]).path
    with pytest.raises(InputError, match="lacks 1 of the 144 turns"):
        compare_runs(old, shorter)
    with pytest.raises(InputError, match="neither a run nor a folder of runs"):
        compare_runs(tmp_path / "nowhere", old)


def test_a_folder_of_runs_is_a_reference(tmp_path: Path) -> None:
    trials = made_up_trials(METHODS, TASKS, questions=8)
    for day in range(12):
        about = {"started": f"2026-11-{day + 1:02}T00:00:00Z"}
        write_run(tmp_path / "rolling" / f"r{day:02}", noisy(trials, day), **about)
    found = compare_runs(tmp_path / "rolling", write_run(tmp_path / "new", noisy(trials, 99)).path)
    assert found.reference == "r11" and found.verdict != "fail"
    alone = compare_runs(tmp_path / "rolling" / "r11", tmp_path / "new")
    widths = [[one.ratio.high - one.ratio.low for one in each.changes] for each in (found, alone)]
    assert np.mean(widths[0]) < np.mean(widths[1]), "ten runs know more than one"


def test_two_versions_in_one_run(tmp_path: Path) -> None:
    trials = made_up_trials(METHODS, TASKS, questions=8)
    paired = [replace(trial, method=f"{trial.method}@reference") for trial in trials]
    sound = write_run(tmp_path / "sound", noisy([*trials, *paired], 1)).path
    assert compare_checkouts(sound).verdict != "fail"
    slow_loop = dict.fromkeys(("autoregressive", "pld", "sps"), 0.1)
    found = compare_checkouts(write_run(tmp_path / "slow", noisy([*trials, *paired], 2, slow_loop)).path)
    verdicts = {one.what: one.verdict for one in found.changes}
    assert found.verdict == "fail" and verdicts["autoregressive over autoregressive@reference"] == "fail"
    assert compare_checkouts(tmp_path / "slow", exchanged=True).changes[0].ratio.estimate > 1
    with pytest.raises(InputError, match="none of its methods was also run on engine reference"):
        compare_checkouts(write_run(tmp_path / "alone", trials).path)


def test_the_fastest_of_equal_repeats_counts(tmp_path: Path) -> None:
    def ratio(seeds: Sequence[int], by_repeat: bool = False) -> list[float]:
        """Autoregressive took 1.2 and 1 s, pld 0.5 and, disturbed, 5."""
        times = {"autoregressive": (1.2, 1.0), "pld": (0.5, 5.0)}
        trials = [
            fake_run.trial(method, [1, 1], seconds, repeat=repeat, seed=seeds[repeat])
            for method, both in times.items()
            for repeat, seconds in enumerate(both)
        ]
        run = read_run(write_run(tmp_path / f"{seeds}-{by_repeat}", trials).path)
        return list(np.exp(compute_log_ratios(run, "pld", "autoregressive", by_repeat)))

    assert ratio([0, 0]) == pytest.approx([1.0 / 0.5])
    assert ratio([0, 0], by_repeat=True) == pytest.approx([1.2 / 0.5, 1.0 / 5.0])
    assert ratio([0, 1]) == pytest.approx([2.2 / 5.5]), "texts of two seeds are not repeats of one"


def test_a_plan_says_what_its_minutes_are_without(tmp_path: Path) -> None:
    """Questions took autoregressive decoding 1 s and 3 s, pld 1 s; 30 of them, twice, take 2 min and 1 min."""
    trials = [
        fake_run.trial(method, [1], seconds, task=task, question_id=question)
        for question, (method, task, seconds) in enumerate(
            [("autoregressive", "qa", 1), ("autoregressive", "qa", 3), ("pld", "qa", 1), ("autoregressive", "rag", 1)]
        )
    ]
    pilot = read_run(write_run(tmp_path / "pilot", trials).path)
    found = plan_run(pilot, {"qa": 30, "rag": 30, "translation": 2}, ["autoregressive", "pld", "pld@hf"], repeats=2)
    assert found.minutes["autoregressive"]["qa"] == 2 and found.minutes["pld"]["qa"] == 1
    assert found.total == 2 + 1 + 1 and found.lacking == ["pld@hf", "translation", "pld on rag"]


def test_what_other_tools_read(tmp_path: Path) -> None:
    old, new = pair(tmp_path, pld=0.1)
    found = compare_runs(old, new)
    write_junit(found, tmp_path / "junit.xml")
    suite = ElementTree.parse(tmp_path / "junit.xml").getroot()
    assert suite.get("tests") == "6" and int(suite.get("failures", 0)) >= 1
    assert suite.find("testcase[@name='pld over autoregressive']/failure") is not None
    plain = json.loads(format_document(build_document(found)))
    assert plain["failed"] and plain["changes"][0]["verdict"] == "fail"
    assert "| pld over autoregressive | 0.9" in format_comparison(found)

    run = read_run(new)
    bigger, smaller = export_github(run, tmp_path)
    points = json.loads(bigger.read_text())
    for point in [*points, *json.loads(smaller.read_text())]:
        assert {"name", "unit", "value"} <= set(point) <= set(POINT), point
        assert all(isinstance(value, POINT[key]) for key, value in point.items()), point
    assert any(point["name"] == "fake-100m-bfloat16/pld/overall: speedup" and "range" in point for point in points)
    assert {point["unit"] for point in json.loads(smaller.read_text())} == {"ms", "MB"}
    (bmf,) = export_bencher(run, tmp_path)
    benchmarks = json.loads(bmf.read_text())
    for measure in (measure for measures in benchmarks.values() for measure in measures.values()):
        assert {"value"} <= set(measure) <= {"value", "lower_value", "upper_value"}, measure
        assert all(isinstance(value, float) for value in measure.values()), measure
    assert all(slug == slug.lower().replace("_", "-") for measures in benchmarks.values() for slug in measures)
    speedup = benchmarks["fake-100m-bfloat16/pld/overall"]["speedup"]
    assert speedup["lower_value"] < speedup["value"] < speedup["upper_value"]
    benchmarks, machine, result = (json.loads(path.read_text()) for path in export_asv(run, tmp_path / "asv"))
    values, params = result["results"]["ms_per_token"][:2]
    assert len(values) == len(params[0]) * len(params[1]) and machine["version"] == 1
    columns = dict(zip(result["result_columns"], result["results"]["ms_per_token"], strict=True))
    assert all(
        low <= value <= high for low, value, high in zip(columns["stats_q_25"], values, columns["stats_q_75"], strict=True)
    )
    assert benchmarks["ms_per_token"]["params"] == params
    assert benchmarks["ms_per_token"]["version"] == result["results"]["ms_per_token"][2]


def test_asv_keeps_the_results_of_other_versions_and_targets(tmp_path: Path) -> None:
    """It shows no result whose version is not the benchmark's, and one file a commit and environment."""
    old, new = pair(tmp_path)
    RunDirectory(new).write_provenance(PROVENANCE | {"code_sha256": "changed", "git": {"commit": "b" * 40}})
    RunDirectory(tmp_path / "new").write_config(CONFIG | {"target": {"name": "other", "shape": None, "dtype": "bfloat16"}})
    written = [export_asv(read_run(run), tmp_path / "asv") for run in (old, new)]
    results = [json.loads(paths[-1].read_text()) for paths in written]
    assert results[0]["results"]["ms_per_token"][2] == results[1]["results"]["ms_per_token"][2]
    assert [result["params"]["target"] for result in results] == ["fake-100m-bfloat16", "other-bfloat16"]
    assert written[0][-1] != written[1][-1]


def test_asv_takes_a_run_that_does_not_say_when_it_began(tmp_path: Path) -> None:
    """An imported one."""
    old, _ = pair(tmp_path)
    RunDirectory(old).write_provenance({"imported": ["model_answer_run_1/pld.jsonl"]})
    result = json.loads(export_asv(read_run(old), tmp_path / "asv")[-1].read_text())
    assert result["date"] == 0 and all(result["results"]["ms_per_token"][0])


def test_the_command(cli: Cli, tiny: Tiny, tmp_path: Path) -> None:
    run = ["task=[qa]", "method=[pld]", "repeats=2"]
    for name in ("old", "new"):
        assert cli("run", *tiny.overrides(*run, f"out={name}")).status == 0
    status, out, err = cli("compare", "old", "new", "--junit", "junit.xml", "--factor", "threads")
    assert status in (0, 1), err
    assert "pld over autoregressive" in out and (tmp_path / "junit.xml").exists()
    assert cli("compare", "old", "nowhere").status == 2
    status, out, err = cli("export", "github", "old", "--out", "charts")
    assert status == 0 and (tmp_path / "charts" / "bigger.json").exists()
    assert "no such format; expected github" in cli("export", "gihub", "old").err
    status, out, err = cli("plan", "--pilot", "old", *tiny.overrides("task=[qa]", "method=[pld]", "limit=4"))
    assert status == 0 and "Questions for a difference of 5%" in out and "lacks" not in out, err
    wider = cli("plan", "--pilot", "old", *tiny.overrides("task=[qa]", "method=[pld]", "engine=[native,hf]")).out
    assert "minutes in all, without autoregressive@hf, pld@hf, which the pilot lacks" in " ".join(wider.split())
    assert "expected more than 0.01" in cli("plan", "--pilot", "old", "--effect", "0.01").err
    assert "its timings do not transfer" in cli("plan", "--pilot", "old", "target.shape=100m").err
    files = {name: f"first.{name}" for name in ("json", "junit", "markdown")}
    status, out, err = cli("compare", "rolling", "old", "--add", *(f"--{name}={file}" for name, file in files.items()))
    assert status == 0 and "old: first reference" in out, err
    told = {name: (tmp_path / file).read_text() for name, file in files.items()}
    assert json.loads(told["json"])["reference"] is None and not json.loads(told["json"])["failed"]
    assert "first reference" in told["markdown"] and 'tests="1" failures="0" skipped="1"' in told["junit"]
    assert "already holds one called old" in cli("compare", "rolling", "old", "--add").err
    status, out, err = cli("compare", "rolling", "new", "--add", "--json=second.json")
    passed = json.loads((tmp_path / "second.json").read_text())["verdict"] == "pass"
    assert (tmp_path / "rolling" / "new").exists() == passed, err
    assert ("not added to rolling: only a run that passed becomes a reference" in out) == (not passed)


def test_what_the_other_checkout_lacks_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    other = Checkout(str(ROOT), ["method=[of_tomorrow]"], config_dir=None, threads=1)
    with pytest.raises(InputError, match=f"the other checkout, {ROOT}: method=of_tomorrow: no such method; expected "):
        other.has("of_tomorrow")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("text", "said"), [("PROTOCOL = 99\n", "uses protocol 99"), ("import torch\n", "older than any"), (None, "older than any")]
)
def test_a_checkout_of_another_protocol_is_refused_in_a_line(tmp_path: Path, text: str | None, said: str) -> None:
    (tmp_path / "specbench" / "compare").mkdir(parents=True)
    if text is not None:
        (tmp_path / "specbench" / "compare" / "worker.py").write_text(text)
    with pytest.raises(InputError, match=said):
        Checkout(str(tmp_path), [], config_dir=None, threads=1)


def test_an_unfinished_run_is_no_reference(refuse: Refuse, tmp_path: Path) -> None:
    """Stopped before its last turn; of another method of its config it has none."""
    run = write_run(tmp_path / "broken", made_up_trials(METHODS, TASKS, questions=8)[:-1], turns=24)
    run.write_config(CONFIG | {"repeats": 2, "method": {"pld": {}, "sps": {}, "rest": {}}})
    assert read_run(run.path).missing == {"rest": 48, "sps": 1}
    assert refuse("compare", "rolling", "broken", "--add") == (
        "--add: broken is not finished: 49 turns are missing; run the same command again to resume"
    )


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="specbench is no git checkout here")
def test_another_commit_takes_turns_with_this_one(cli: Cli, tiny: Tiny, tmp_path: Path) -> None:
    chosen = tiny.overrides("task=[qa]", "method=[pld]", "repeats=1", "out=both")
    status, out, err = cli("compare", "--against", "HEAD", *chosen, "--json=both.json")
    assert status in (0, 1) and "autoregressive over autoregressive@reference" in out, err  # times are by chance
    trials = RunDirectory(tmp_path / "both").read_trials()
    paired = {"autoregressive@reference", "pld@reference"}
    assert {trial.method for trial in trials} == {"autoregressive", "pld", *paired}
    assert {trial.method for trial in trials if trial.peak_memory_bytes is None} == paired, "its process is another one"
    assert not any(one["differing"] for one in json.loads((tmp_path / "both.json").read_text())["counted"])
    assert cli("compare", "--against", "no-such-branch").err.startswith("specbench: --against no-such-branch: no commit")


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="specbench is no git checkout here")
def test_a_comparison_that_is_ended_leaves_no_checkout_and_no_process(tiny: Tiny, tmp_path: Path) -> None:
    chosen = tiny.overrides("task=[qa]", "method=[pld]", "repeats=1000", "out=both")
    command = [sys.executable, "-m", "specbench", "compare", "--against", "HEAD", *chosen]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        while process.poll() is None and not (tmp_path / "both" / "trials.jsonl").exists():
            time.sleep(0.1)
        (worker,) = [child for child in psutil.Process(process.pid).children() if WORKER in child.cmdline()]
        process.terminate()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err.endswith("\nspecbench: stopped; run the same command with out=both to resume\n")
    assert not worker.is_running() and not list((ROOT / "build").glob("reference-*/"))
