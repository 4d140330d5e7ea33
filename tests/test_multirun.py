"""Sweeps sent to other processes by Hydra's launchers."""

from __future__ import annotations

from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest

from specbench.cli.output import Result
from specbench.records.run_directory import RunDirectory
from specbench.running.sweep import sweep
from tests.conftest import Cli, Tiny

pytestmark = pytest.mark.full

submitit = pytest.mark.skipif(find_spec("submitit") is None, reason="needs the extra submitit")
joblib = pytest.mark.skipif(find_spec("hydra_plugins.hydra_joblib_launcher") is None, reason="needs the extra joblib")


@submitit
def test_jobs_of_a_launcher_take_turns_on_the_device_and_one_that_fails_keeps_no_other(
    cli: Cli, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # locks of this test alone
    reported: list[list[Path]] = []

    def record(runs: list[Path], *_: object, **__: object) -> Result:
        reported.append(runs)
        return Result({}, [], problem=str(__.get("problem", "")))

    monkeypatch.setattr("specbench.cli.finished_runs.report_runs", record)
    chosen = ["task=[qa]", "limit=1", "repeats=1", "target.datastore=/no/where", "out=results/sweep"]
    status, _, err = cli("run", "-m", "method=pld,sps,rest", "hydra/launcher=submitit_local", *tiny.overrides(*chosen))
    assert status == 2 and err.startswith("specbench: out=results/sweep: method=rest: no datastore at /no/where")
    assert err.count("\n") == 1

    runs = [Path("results/sweep") / f"method={method}" for method in ("pld", "sps")]
    assert [len(RunDirectory(run).read_trials()) for run in runs] == [2, 2]
    timed = sorted((run.joinpath("run.json").stat().st_mtime, run.joinpath("summary.csv").stat().st_mtime) for run in runs)
    assert all(before[1] <= after[0] for before, after in pairwise(timed)), timed

    assert cli("report", "results/sweep").status == 0
    assert reported == [runs, runs], "the jobs that came to their end, by the sweep and by its folder"


def test_a_job_that_breaks_keeps_no_other(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = [RuntimeError("DefaultCPUAllocator: can't allocate memory"), OSError(28, "No space left on device"), KeyError("x")]
    monkeypatch.setattr("specbench.running.execute.execute", lambda *_: (_ for _ in ()).throw(errors.pop(0)))
    failed = sweep(["limit=1,2,3", *tiny.overrides(f"out={tmp_path}")], None).failed
    assert [line.partition(" (")[0] for line in failed] == [
        "limit=1: RuntimeError: DefaultCPUAllocator: can't allocate memory",
        "limit=2: No space left on device",
        "limit=3: KeyError: 'x'",
    ]


@submitit
def test_no_slurm_is_one_line(cli: Cli, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    for launcher in ("submitit_slurm", "slurm"):
        status, _, err = cli("run", "-m", "limit=1,2", f"hydra/launcher={launcher}", *tiny.overrides(f"out=results/{launcher}"))
        assert status == 2 and f'hydra/launcher={launcher}: RuntimeError: Could not detect "srun"' in err and err.count("\n") == 1


@joblib
def test_joblib_starts_one_job_at_a_time(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("joblib.Parallel.__init__", lambda self, **given: asked.append(given))
    monkeypatch.setattr("joblib.Parallel.__call__", lambda self, jobs: [])
    sweep(["limit=1,2", "hydra/launcher=joblib", *tiny.overrides(f"out={tmp_path / 'sweep'}")], None)
    assert [given["n_jobs"] for given in asked] == [1]


def test_a_job_for_another_machine_may_name_a_device_of_that_machine(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = []
    monkeypatch.setattr("specbench.running.sweep._run_job", lambda: sent.append(1))
    monkeypatch.setattr("specbench.running.sweep.HERE", ("joblib",))
    sweep(["limit=1,2", "target.device=cuda:99", *tiny.overrides(f"out={tmp_path}")], None)
    assert sent
