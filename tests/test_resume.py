"""kill -9 at any moment, then the same command again: no trial is lost and none runs twice."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from specbench import ROOT
from specbench.errors import InputError
from specbench.records.run_directory import RunDirectory
from specbench.running.execute import execute
from specbench.running.resume import SAME, check_same_run, open_run
from specbench.setup.compose import compose_run
from tests.conftest import Tiny
from tests.fake_engine import Quiet

pytestmark = pytest.mark.full

Row = dict[str, Any]
COUNTS = ["method", "task", "questions", "repeats", "mean_accepted_tokens", "acceptance_rate", "identical", "drafted", "errors"]
KILLS = 4


def run_all(plan: list[dict[str, Any]], folder: Path) -> list[int]:
    """The exit status of each step; -9 is killed."""
    (folder / "plan.json").write_text(json.dumps(plan))
    command = [sys.executable, "-m", "tests.mortal_run", str(folder / "plan.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return [int(line) for line in done.stdout.splitlines()]


def counts(run: Path) -> pd.DataFrame:
    return pd.read_csv(run / "summary.csv")[[*COUNTS, "unpaired", "tokens_per_forward"]]


def rows(run: Path) -> list[Row]:
    return [json.loads(line) for line in (run / "trials.jsonl").read_text().splitlines()]


def key(row: Row) -> tuple[Any, ...]:
    return (row["method"], row["repeat"], row["question_id"], row["turn"])


def without_measures(row: Row) -> Row:
    """A trial without its seconds and bytes, which differ from run to run."""
    varying = ("run_id", "prefill_s", "decode_s", "peak_memory_bytes")
    return {name: value for name, value in row.items() if name not in varying}


@pytest.mark.skipif(not hasattr(os, "waitid"), reason="needs fork and waitid")
def test_killed_again_and_again_a_run_ends_as_if_it_had_not_been(tiny: Tiny, tmp_path: Path) -> None:
    """The kills come at moments drawn anew each time: before the first trial, inside one, while a line is written."""
    moments = random.Random()
    command = tiny.overrides("task=[mt_bench,qa]", "repeats=2")
    kills = [[0, moments.uniform(0, 0.3)], *([moments.randint(1, 5), moments.uniform(0, 0.03)] for _ in range(KILLS - 1))]
    broken = [{"overrides": [*command, f"out={tmp_path / 'broken'}"], "kill": kill} for kill in [*kills, None, None]]
    whole = {"overrides": [*command, f"out={tmp_path / 'whole'}"], "kill": None}
    statuses = run_all([whole, *broken], tmp_path)
    assert statuses[0] == 0 and statuses[-2:] == [0, 0] and set(statuses[1 : 1 + KILLS]) <= {-9, 0}, (statuses, kills)
    assert -9 in statuses, "at least the first kill comes before the end"

    lines = rows(tmp_path / "broken")
    assert Counter(map(key, lines)) == Counter(map(key, rows(tmp_path / "whole"))), f"lost or twice, killed at {kills}"
    by_key = {key(row): without_measures(row) for row in rows(tmp_path / "whole")}
    assert all(without_measures(row) == by_key[key(row)] for row in lines)
    pd.testing.assert_frame_equal(counts(tmp_path / "broken"), counts(tmp_path / "whole"))
    prompts = [RunDirectory(tmp_path / name).read_prompts() for name in ("broken", "whole")]
    assert sorted(map(str, prompts[0])) == sorted(map(str, prompts[1]))
    assert (tmp_path / "broken" / "config.yaml").read_text() == (tmp_path / "whole" / "config.yaml").read_text()


def short(tiny: Tiny, *more: str) -> list[str]:
    return tiny.overrides("task=[mt_bench,qa]", "limit=1", "method=[pld]", *more)


def test_a_torn_last_line_is_run_again(tiny: Tiny, tmp_path: Path) -> None:
    command = short(tiny, "repeats=1", f"out={tmp_path / 'run'}")
    execute(compose_run(command), Quiet())
    before = rows(tmp_path / "run")
    for file in ("trials.jsonl", "prompts.jsonl", "texts.jsonl"):
        data = (tmp_path / "run" / file).read_bytes()
        (tmp_path / "run" / file).write_bytes(data[:-20])
    watcher = Quiet()
    execute(compose_run(command), watcher)
    assert watcher.began == [(6, 5)] and len(watcher.trials) == 1
    assert [without_measures(row) for row in rows(tmp_path / "run")] == [without_measures(row) for row in before]
    assert len(RunDirectory(tmp_path / "run").read_prompts()) == 3


def test_a_run_killed_between_its_first_files_resumes(tiny: Tiny, tmp_path: Path) -> None:
    command = short(tiny, "repeats=1", f"out={tmp_path / 'run'}")
    execute(compose_run(command), Quiet())
    (tmp_path / "run" / "run.json").unlink()
    (tmp_path / "run" / ".run.json.x1y2").write_text("{")
    execute(compose_run(command), Quiet())
    assert RunDirectory(tmp_path / "run").read_provenance()["dtype"] == "float32"
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / ".config.yaml.x1y2").write_text("target: ")
    execute(compose_run([*command[:-1], f"out={tmp_path / 'half'}"]), Quiet())
    assert len(rows(tmp_path / "half")) == 6


def test_a_run_is_extended_by_methods_engines_and_repeats(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder may be given relative to wherever the command is called from."""
    monkeypatch.chdir(tmp_path)

    def new(*overrides: str) -> Counter[tuple[str, int]]:
        watcher = Quiet()
        execute(compose_run([*tiny.overrides("task=[mt_bench,qa]", "limit=1"), *overrides]), watcher)
        return Counter((trial.method, trial.repeat) for trial in watcher.trials)

    assert new("method=[pld]", "repeats=1", "out=run") == {("autoregressive", 0): 3, ("pld", 0): 3}
    assert new("method=[sps]", "repeats=1", f"out={tmp_path / 'run'}") == {("sps", 0): 3}
    assert new("method=[pld]", "repeats=2", "out=./run") == {("autoregressive", 1): 3, ("pld", 1): 3}
    assert new("method=[]", "repeats=1", "engine=[native,hf]", "out=run") == {("autoregressive@hf", 0): 3}
    assert new("method=[sps,pld]", "repeats=2", "engine=[native,hf]", "out=run") == {
        **{("sps", 1): 3, ("autoregressive@hf", 1): 3},
        **{(f"{method}@hf", repeat): 3 for method in ("pld", "sps") for repeat in range(2)},
    }
    assert "continued" not in RunDirectory("run").read_provenance(), "the same code on the same machine"
    config = RunDirectory("run").read_config()
    assert list(config["method"]) == ["autoregressive", "pld", "sps"] and list(config["engine"]) == ["native", "hf"]
    assert config["repeats"] == 2
    summary = pd.read_csv("run/summary.csv")
    overall = summary[summary["task"] == "overall"].set_index("method")
    assert len(overall) == 6 and (overall["repeats"] == 2).all() and (overall["errors"] == 0).all()
    assert (overall["identical"] == 1).all(), "greedy decoding in float32 on one CPU: every method gives the target's own text"


def test_a_setting_that_is_null_and_one_that_is_absent_differ(tmp_path: Path) -> None:
    stored = {"method": {}, "engine": {}, "repeats": 1, "sampling": {"temperature": 0, "top_k": None}}
    RunDirectory(tmp_path).write_config(stored)
    with pytest.raises(InputError, match="its sampling.top_k is None, here absent"):
        check_same_run(RunDirectory(tmp_path), stored | {"sampling": {"temperature": 0}})


def test_a_setting_that_is_new_and_null_does_not_keep_an_older_run_from_its_end(tmp_path: Path) -> None:
    stored = {"method": {}, "engine": {}, "repeats": 1, "sampling": {"temperature": 0}}
    RunDirectory(tmp_path).write_config(stored)
    new = {"sampling": {"temperature": 0, "stop": None, "ignore_eos": None}}
    check_same_run(RunDirectory(tmp_path), stored | new)
    with pytest.raises(InputError, match="its sampling.ignore_eos is absent, here True"):
        check_same_run(RunDirectory(tmp_path), stored | {"sampling": {"temperature": 0, "ignore_eos": True}})


def test_other_versions_are_noted_once_and_never_lost(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    about = {"device": {"name": "cpu"}, **dict.fromkeys(SAME), "versions": {"torch": "1"}, "git": None, "machine": {"threads": 2}}
    newer = {**about, "started": "later", "versions": {"torch": "2"}}
    for now in (about, about, newer, newer, about):
        open_run(run, {"method": {}, "engine": {}, "repeats": 1}, now)
    (noted,) = run.read_provenance()["continued"]
    assert noted["differs"] == ["versions"] and noted["started"] == "later" and noted["versions"] == {"torch": "2"}
    assert run.read_provenance()["versions"] == {"torch": "1"}
