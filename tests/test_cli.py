"""The command line: its help, whole runs of it, methods from elsewhere, sweeps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from specbench import ROOT
from specbench.cli.output import Result
from specbench.records.run_directory import RunDirectory
from specbench.records.trial import QuestionId
from specbench.running.execute import execute
from specbench.running.progress import ProgressDisplay
from specbench.running.sweep import expand_sweep, sweep
from specbench.setup.compose import compose_run
from tests.conftest import Cli, Tiny
from tests.fake_engine import Quiet

pytestmark = pytest.mark.full

MINE = """
from methods.pld import PromptLookup

class Mine(PromptLookup):
    def __init__(self, length: int) -> None:
        super().__init__(max_ngram=3, min_ngram=1, length=length, match="last", full=False, filler=7)
"""


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> list[list[Path]]:
    """The runs that would be reported; no report is rendered."""
    reported: list[list[Path]] = []

    def record(runs: list[Path], *_: object, problem: str = "") -> Result:
        reported.append(runs)
        return Result({}, [], problem=problem)

    monkeypatch.setattr("specbench.cli.finished_runs.report_runs", record)
    return reported


def test_without_a_command_it_lists_the_commands(cli: Cli) -> None:
    for argv in ([], ["-h"], ["--help"]):
        status, out, err = cli(*argv)
        assert status == 0 and err == ""
        for command in ("run", "report", "cost", "doctor", "list"):
            assert f"\n  {command} " in out


def test_list_prints_the_choices(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_text("# @package method.mine\n")
    status, out, _ = cli("list", "--config-dir", str(tmp_path))
    lines = dict(line.split(": ", 1) for line in out.splitlines())
    assert status == 0
    assert {"autoregressive", "mine", "pld", "sps"} <= set(lines["method"].split(", "))
    assert "mini" in lines["target"] and "hf, llama_cpp, native" in lines["engine"]
    assert "rag" in lines["task"] and "jsonl" in lines["suite"]


def test_help_of_run_names_every_setting(cli: Cli) -> None:
    status, out, _ = cli("run", "--help")
    assert status == 0 and "--config-dir" in out and "--multirun" in out
    for setting in ("limit", "repeats", "seed", "context", "profile", "threads", "out", "max_new_tokens", "method"):
        assert f"{setting}:" in out


def test_a_run_prints_its_table_and_leaves_its_files(cli: Cli, tiny: Tiny, tmp_path: Path) -> None:
    status, out, err = cli("run", *tiny.overrides("task=[qa,mt_bench]", "repeats=1", "out=results/first"))
    assert status == 0, err
    assert "Loading weights" not in out + err and "warn" not in (out + err).lower()
    assert "results/first: 18 turns" in err and "18/18 turns" in err and "page: reports/first/index.html" in out
    assert (tmp_path / "reports" / "first" / "index.html").is_file()
    run = RunDirectory(tmp_path / "results" / "first")
    assert {trial.method for trial in run.read_trials()} == {"autoregressive", "pld", "sps"} and len(run.read_trials()) == 18
    assert {path.name for path in run.path.iterdir()} == {
        *("config.yaml", "run.json", "prompts.jsonl", "trials.jsonl", "texts.jsonl", "summary.csv", ".lock"),
    }
    assert "out" not in run.read_config() and run.read_config()["sampling"]["max_new_tokens"] == 8
    about = json.loads((run.path / "run.json").read_text())
    assert about["dtype"] == "float32" and about["target_sha256"] and about["draft_sha256"] and about["suite_sha256"]


def test_limit_and_seed_draw_the_questions(tiny: Tiny, tmp_path: Path) -> None:
    def run(name: str, *overrides: str) -> dict[str, set[QuestionId]]:
        command = tiny.overrides("task=[mt_bench,qa]", "method=[]", "repeats=1", "suite.per_task=16", "sampling.max_new_tokens=1")
        execute(compose_run([*command, *overrides, f"out={tmp_path / name}"]), Quiet())
        trials = RunDirectory(tmp_path / name).read_trials()
        return {task: {trial.question_id for trial in trials if trial.task == task} for task in ("mt_bench", "qa")}

    few = run("few", "limit=3")
    more = run("more", "limit=5")
    other = run("other", "limit=3", "seed=1")
    assert [len(ids) for ids in few.values()] == [3, 3] and [len(ids) for ids in more.values()] == [5, 5]
    assert all(few[task] < more[task] for task in few), "a smaller limit's questions are among a larger one's"
    assert few != other


def test_a_run_in_which_everything_fails_ends_with_its_error_rows(
    cli: Cli, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("CUDA error: device lost")

    monkeypatch.setattr("specbench.engine.native.Native.generate_group", broken)
    status, _, err = cli("run", *tiny.overrides("task=[qa,mt_bench]", "repeats=1", "limit=1", "out=results/broken"))
    assert status == 0
    assert err.count(" failed on question ") == 3, "once per method"
    trials = RunDirectory(tmp_path / "results" / "broken").read_trials()
    assert len(trials) == 9 and all(trial.failed for trial in trials)


def test_random_weights_speak_with_the_embedded_tokenizer(tmp_path: Path) -> None:
    """Their vocabulary is larger, and ids beyond the tokenizer's have no text; two turns work nevertheless."""
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4}
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, **heads}
    sizes = [f"target{draft}.config.{key}={value}" for key, value in small.items() for draft in ("", ".draft")]
    command = ["target=vicuna_7b", "target.weights=random", *sizes, "task=mt_bench", "limit=1", "repeats=1", "threads=1"]
    execute(compose_run([*command, "sampling.max_new_tokens=8", f"out={tmp_path / 'run'}"]), Quiet())
    trials = RunDirectory(tmp_path / "run").read_trials()
    assert len(trials) == 6 and not any(trial.failed for trial in trials)
    assert max(max(trial.output_ids or []) for trial in trials) >= 1024
    about = RunDirectory(tmp_path / "run").read_provenance()
    assert about["target_sha256"] is None and about["draft_sha256"] is None


def test_without_out_no_two_runs_share_a_folder(
    cli: Cli, tiny: Tiny, tmp_path: Path, no_report: list[list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("specbench.records.names.time.strftime", lambda _: "20261120-120000")
    for _ in range(2):
        assert cli("run", *tiny.overrides("task=qa", "method=[]", "limit=1", "repeats=1")).status == 0
    names = [run.name for (run,) in no_report]
    assert names == ["mini-20261120-120000", "mini-20261120-120000-2"]


def test_a_third_party_method_needs_no_edit_here(cli: Cli, tiny: Tiny, tmp_path: Path, no_report: list[list[Path]]) -> None:
    """Its YAML names its class, whose file may be in the same folder: Python imports from --config-dir."""
    outside = tmp_path / "outside"
    (outside / "method").mkdir(parents=True)
    (outside / "elsewhere.py").write_text(MINE)
    (outside / "method" / "mine.yaml").write_text("# @package method.mine\n_target_: elsewhere.Mine\nlength: 4\n")
    chosen = ["--config-dir", "outside", "task=qa", "limit=1", "repeats=1"]
    status, _, err = cli("run", "method=[mine,pld]", *tiny.overrides(*chosen, "out=results/mine"))
    assert status == 0, err
    trials = RunDirectory(tmp_path / "results/mine").read_trials()
    assert {trial.method for trial in trials} == {"autoregressive", "mine", "pld"} and not any(t.failed for t in trials)

    status, _, err = cli("run", "-m", "method=mine,pld", *tiny.overrides(*chosen, "out=results/sweep"))
    assert status == 0, err
    runs = [Path("results/sweep/method=mine"), Path("results/sweep/method=pld")]
    assert no_report[-1] == runs
    for run, method in zip(runs, ("mine", "pld"), strict=True):
        assert {trial.method for trial in RunDirectory(run).read_trials()} == {"autoregressive", method}
    again = cli("run", "-m", "method=mine,pld", *tiny.overrides(*chosen, "out=results/sweep"))
    assert again.status == 0 and again.err.count("2 of them done") == 2, "a sweep resumes like a run"


def test_jobs_that_cannot_run_end_their_sweep_with_one_line(cli: Cli, tiny: Tiny, no_report: list[list[Path]]) -> None:
    """The error appears only when the job has started, inside Hydra."""
    command = ["run", "-m", "limit=1,2", *tiny.overrides("task=qa", "method=[]", "target.path=/nowhere/at/all", "out=sweep")]
    status, _, err = cli(*command)
    assert status == 2 and err.startswith("specbench: out=sweep: limit=1: no model at ") and err.count("\n") == 1
    assert "limit=2: no model at /nowhere/at/all: " in err
    assert no_report == [] and not list(Path("sweep").rglob("config.yaml"))


def test_a_datastore_from_the_target_s_own_answers_and_a_run_with_it(cli: Cli, tiny: Tiny, tmp_path: Path) -> None:
    """Both turns of a conversation in one document; run.json and the report say what the store holds of the questions."""
    target = [f"target.path={tiny.target}", "target.dtype=float32"]
    chosen = ["suite=mini", "suite.per_task=2", "task=[qa,mt_bench]", "limit=1", "max_new_tokens=8"]
    status, out, err = cli("datastore", "build", *target, *chosen, "out=store")
    assert status == 0 and "2/2 · the target answers" in err and "datastore: store;" in out, err
    about = json.loads((tmp_path / "store" / "store.json").read_text())
    assert about["documents"] == 2 and about["source"] == "suite mini, test split, answered by target"

    run = ["method=[rest,pld]", "target.datastore=store", "task=[qa,mt_bench]", "limit=1", "repeats=1", "out=results/leaky"]
    status, out, err = cli("run", *tiny.overrides(*run))
    assert status == 0, err
    (leak,) = RunDirectory(tmp_path / "results/leaky").read_provenance()["leakage"]["rest"]
    assert (leak["name"], leak["questions"], leak["leaked"], leak["documents"]) == ("store", 2, 2, 2)
    assert "alarm: rest: its datastore store contains 2 of the 2 questions" in out
    status, out, err = cli("run", *tiny.overrides(*run, "method=[rest_spec_bench]"))
    assert status == 0, err
    assert set(RunDirectory(tmp_path / "results/leaky").read_provenance()["leakage"]) == {"rest", "rest_spec_bench"}


def test_a_run_does_not_resume_with_another_skip_set_in_the_same_place(cli: Cli, tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "skip.yaml").write_text("attention: [1]\nmlp: []\n")
    checkpoint = f"method.self_speculative.checkpoint={tmp_path / 'skip.yaml'}"
    run = tiny.overrides("method=[self_speculative]", checkpoint, "task=[qa]", "limit=1", "repeats=1", "out=results/skips")
    status, _, err = cli("run", *run)
    assert status == 0, err
    assert list(RunDirectory(tmp_path / "results/skips").read_provenance()["checkpoints"]) == ["self_speculative"]
    (tmp_path / "skip.yaml").write_text("attention: []\nmlp: [1]\n")
    status, _, err = cli("run", *run)
    assert status == 2 and "holds another run: its checkpoint of self_speculative is" in err


def test_a_datastore_needs_no_weights(cli: Cli, tiny: Tiny, tmp_path: Path) -> None:
    tiny.tokenizer.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "texts.txt").write_text("One.\n\nTwo.\n\nThree.\n")
    status, _, err = cli("datastore", "build", "target.path=tokenizer", "data=texts.txt", "limit=2", "out=store")
    assert status == 0, err
    assert json.loads((tmp_path / "store" / "store.json").read_text())["documents"] == 2


def test_datastore_alone_explains_itself(cli: Cli) -> None:
    for argv in ([], ["--help"]):
        assert "specbench datastore build" in cli("datastore", *argv).out
    status, out, _ = cli("datastore", "build", "--help")
    assert status == 0 and all(f"{setting}:" in out for setting in ("data", "dataset", "field", "limit", "chunk_tokens", "out"))


def test_ctrl_c_says_how_to_resume(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(_: object, watcher: ProgressDisplay) -> None:
        watcher.set_run(Path("results/x"))
        raise KeyboardInterrupt

    monkeypatch.setattr("specbench.running.execute.execute", stopped)
    status, _, err = cli("run")
    assert status == 130 and err == "specbench: stopped; run the same command with out=results/x to resume\n"


def test_ctrl_c_before_anything_was_written_promises_nothing(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("specbench.running.execute.execute", stopped)
    assert cli("run")[::2] == (130, "specbench: stopped\n")


def test_a_folder_that_cannot_be_written_is_one_line(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "results/x/trials.jsonl")

    monkeypatch.setattr("specbench.running.execute.execute", full)
    status, _, err = cli("run")
    assert status == 2 and err.count("\n") == 1 and "No space left on device" in err and "results/x/trials.jsonl" in err


def test_the_program_itself_leaves_with_the_status_and_one_line(tmp_path: Path) -> None:
    """The one test of a real process: nothing that an import or Hydra prints reaches the terminal."""
    command = [sys.executable, "-m", "specbench", "run", "method=pdl", f"out={tmp_path / 'run'}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("specbench: method=pdl: no such method; expected pld, ") and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_experiments_sweep_becomes_a_run_for_each_value(cli: Cli, tiny: Tiny, no_report: list[list[Path]]) -> None:
    chosen = ["method=[pld]", "task=[qa]", "limit=1", "repeats=2"]
    status, _, err = cli("run", "experiment=temperature_sweep", *tiny.overrides(*chosen, "out=results/sweep"))
    assert status == 0, err
    assert no_report[-1] == [Path(f"results/sweep/sampling.temperature={value}") for value in ("0.0", "0.5", "1.0")]
    for run, seeds in zip(no_report[-1], ({0}, {0, 1}, {0, 1}), strict=True):
        assert {trial.seed for trial in RunDirectory(run).read_trials()} == seeds
    status, _, err = cli("run", "+sweep.limit=3", *tiny.overrides("out=results/other"))
    assert status == 2 and "sweep.limit=3: expected a list of values" in err


def test_a_sweep_that_is_stopped_says_how_to_resume(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("specbench.running.sweep._run_job", stopped)
    monkeypatch.setattr(sys, "argv", [])
    status, _, err = cli("run", "sweep.limit=[1,2]", "out=results/sweep")
    assert status == 130 and "run the same command with out=results/sweep to resume" in err


def test_what_the_command_line_gives_is_not_swept() -> None:
    swept = {"sampling": {"temperature": [0, 1]}, "target.dtype": ["float32", "bfloat16"]}
    assert expand_sweep(swept, ["target.dtype=float32", "limit=1"]) == ["sampling.temperature=0,1"]


def test_an_experiments_sweep_stays_beside_one_of_the_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("specbench.running.sweep._run_job", lambda: None)
    monkeypatch.setattr(sys, "argv", [])
    sweep(["experiment=temperature_sweep", "limit=1,2", f"out={tmp_path}"], None)
    assert {"limit=1,2", "sampling.temperature=0.0,0.5,1.0"} <= set(sys.argv)


def test_a_sweep_of_one_value_runs_in_a_folder_of_its_own(cli: Cli, tiny: Tiny, no_report: list[list[Path]]) -> None:
    chosen = ["method=[]", "task=[qa]", "limit=1", "repeats=1"]
    status, _, err = cli("run", "-m", "sampling.temperature=0.5", *tiny.overrides(*chosen, "out=results/one"))
    assert status == 0, err
    assert no_report[-1] == [Path("results/one/0")]
    status, _, err = cli(
        "run", "experiment=temperature_sweep", "sampling.temperature=0.3", *tiny.overrides(*chosen, "out=results/plain")
    )
    assert status == 0 and no_report[-1] == [Path("results/plain")], "a setting that the command line gives is not swept"


@pytest.mark.parametrize("content", ["run.json", "note.txt"])
def test_a_sweep_leaves_a_folder_of_something_else_alone(cli: Cli, tiny: Tiny, content: str) -> None:
    folder = Path("results/other")
    folder.mkdir(parents=True)
    (folder / content).write_text("{}")
    status, _, err = cli("run", "-m", "limit=1,2", *tiny.overrides("method=[]", "task=[qa]", "out=results/other"))
    assert status == 2 and "expected a sweep's folder" in err and [path.name for path in folder.iterdir()] == [content]


@pytest.mark.parametrize("value", ["abc", "1", "[1]"])
def test_a_sweep_that_is_no_mapping_is_one_line(cli: Cli, tiny: Tiny, value: str) -> None:
    status, _, err = cli("run", f"sweep={value}", *tiny.overrides("method=[]"))
    assert status == 2 and "sweep" in err and err.count("\n") == 1
