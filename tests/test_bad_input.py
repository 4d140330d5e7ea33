"""A user's mistake gives exit status 2 and one line on stderr with the nearest valid choice; nothing is written."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from specbench import ROOT
from specbench.datastore.build import build_datastore
from specbench.machine.locks import lock_run
from specbench.running.execute import execute
from specbench.setup.compose import compose_run
from tests.conftest import Refuse, Tiny, tensors
from tests.fake_engine import Quiet

pytestmark = pytest.mark.full


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["rnu"], "rnu: no such command; expected run, "),
        (["report"], "the following arguments are required: RUN; see specbench report --help"),
        (["report", "nowhere"], "nowhere is not a run directory: it has no config.yaml"),
        (["report", ".", "--ot", "x"], "unrecognized arguments: --ot x; see specbench report --help"),
        (["list", "--config-dir", "nowhere"], "--config-dir nowhere: no such folder"),
        (["run", "limit"], "limit: expected KEY=VALUE, such as limit=10"),
        (["run", "pld"], "pld: expected KEY=VALUE, such as method=[pld]"),
        (["run", "=3"], "=3: expected KEY=VALUE"),
        (["run", "--confg-dir=x"], "unrecognized arguments: --confg-dir=x; see specbench run --help"),
        (["run", "method=pld", "--config-dir", "nowhere", "limit=3"], "--config-dir nowhere: no such folder"),
        (["run", "method=pdl"], "method=pdl: no such method; expected pld, "),
        (["run", "limt=3"], "limt: no such setting; the nearest is limit"),
        (["run", "~limit"], "~limit: a setting can be changed, but not deleted"),
        (["run", "limit=1", "~limit"], "~limit: a setting can be changed, but not deleted"),
        (["run", "~method"], "~method: a setting can be changed, but not deleted"),
        (["run", "~target.draft"], "target: its YAML has no draft"),
        (["run", "repeats=0"], "repeats=0: expected a whole number, at least 1"),
        (["run", "suite=jsonl", "method=[]"], "suite jsonl needs a questions file: give suite.path=FILE"),
        (["train"], "method: expected one, such as method=NAME; `specbench list` shows them"),
        (["datastore", "build", "data=/dev/null"], "/dev/null: expected a file, found a device"),
        (["datastore", "bild"], "datastore bild: no such command; expected build"),
        (["datastore", "build", "method=[rest]"], "method: no such setting"),
        (["datastore", "build", "data=FILE", "dataset=some/set"], "data=FILE and dataset=some/set: expected one of them"),
        (["datastore", "build", "chunk_tokens=0"], "chunk_tokens=0: expected a number of tokens, at least 1, or null"),
        (["datastore", "build", "target=vicuna_7"], "target=vicuna_7: no such target; expected vicuna_7b, "),
        (["datastore", "build", "out=."], "out=.: already exists; choose another folder"),
        (["cost", "target=vicuna_7"], "target=vicuna_7: no such target; expected vicuna_7b, "),
        (["cost", "experiment=temperature_sweep"], ": cost is about one run; expected one value, such as sampling.temperature="),
        (["replay", "--of", ".", "experiment=temperature_sweep"], ": replay is about one run; expected one value"),
        (["run", "-m", "method=pld,pdl"], "method=pdl: no such method; expected pld, "),
        (["run", "-m", "limit=1,0"], "limit=0: expected a number of questions"),
        (["run", "-m", "target.dtype=float32,half"], "dtype=half: on cpu expected auto, float32"),
        (["run", "sweep.limit=[1,0]"], "limit=0: expected a number of questions"),
        (["certify", "seed=1,2"], "seed=1,2: expected one value"),
        (["certify", "samples=32"], "samples: no such setting of specbench certify"),
        (["certify", "repeats=3"], "repeats: no such setting of specbench certify"),
        (
            ["run", "limit=1", "method=[]", "out=/proc/nowhere"],
            "/proc/nowhere: No such file or directory; choose another folder",
        ),
        (["run", "-m", "limt=1,2"], "limt: no such setting; the nearest is limit"),
        (["run", "-m", "method=[pld,sps"], "method=[pld,sps: not an override"),
        (["run", "-m", "limit=1,2", "out=a,b"], "out=a,b: expected one folder; each job of -m gets its own inside"),
        (["run", "-m", "limit=1,2", "hydra/launcher=mpi"], "hydra/launcher=mpi: no such hydra/launcher; expected basic"),
        (["compare", "--against", "HEAD", "sweep.limit=[1,2]"], "limit=1,2: compare --against is about one run"),
        (["compare", "--against", "HEAD", "experiment=precision_sweep"], "one value, such as target.dtype=float32"),
        (["plan", "--pilot", "pilot", "sweep.limit=[1,2]"], "limit=1,2: plan is about one run; expected one value"),
        (["run", "-m", "limit=1,2", "hydra/launcher=mpi"], "; pip install -e '.[submitit]', [joblib] or [ray] adds more"),
    ],
)
def test_the_command_line(refuse: Refuse, argv: list[str], expected: str) -> None:
    assert expected in refuse(*argv)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["target.path=/nowhere/at/all"], "no model at /nowhere/at/all: no such folder"),
        (["target.path=null"], "target.path=null: expected a hub id or a folder"),
        (["target.shape=10m"], "target.shape=10m: mini has 100m"),
        (["target.dtype=bloat16"], "dtype=bloat16: on cpu expected bfloat16, "),
        (["target.device=cdua"], "device=cdua: not on this machine; expected "),
        (["target.device=cuda:99"], "device=cuda:99: not on this machine; expected "),
        (["target.format=vicnua"], "target.format=vicnua: expected vicuna, auto, template or plain"),
        (["target.shape=[100m]"], "target.shape=['100m']: expected the name of a shape, or null"),
        (["suite.split=valid"], "suite.split=valid: expected train or test"),
        (["~suite._target_"], "suite: expected a _target_, the class to build; given: "),
        (["target.weights=random", "target.config={hidden_size: 8}"], "target.config: expected a model_type, such as llama"),
        (["target.weights=random", "target.config={model_type: lama}"], "target.config: no model can be built from it: "),
        (
            ["target=qwen3_8b", "target.weights=random", "++target.config.num_hidden_layer=2"],
            "target.config.num_hidden_layer: qwen3 has no such setting; the nearest is num_hidden_layers",
        ),
        (
            ["target=vicuna_7b", "target.weights=random", "++target.draft.config.hiden_size=8", "method=[sps]"],
            "target.draft.config.hiden_size: llama has no such setting; the nearest is hidden_size",
        ),
        (["target.weights=randm"], "target.weights=randm: expected random or pretrained"),
        (["target.weights=random"], "target.weights=random needs target.config, the model's architecture"),
        (
            ["target.shape=100m", "target.shapes={100m: {hidden_size: 8, intermediate_size: 8, num_attention_heads: 1}}"],
            "shape: hidden_size=8 is smaller than the model's ",
        ),
        (["target.shape=x", "+target.shapes.x={head_dim: 12}"], "shape: head_dim=12 is not a multiple of the model's 8"),
        (["target.shape=x", "+target.shapes.x={layers: 12}"], "shape: layers is not a size of a shape; expected hidden_size, "),
        (["target.shape=x", "+target.shapes.x={hidden_size: wide}"], "shape: hidden_size=wide: expected a whole number"),
        (["target.shape=x", "+target.shapes.x={hidden_size: 300.5}"], "shape: hidden_size=300.5: expected a whole number"),
        (["target.shape=x", "+target.shapes.x=null"], "target.shapes.x is empty: expected sizes, such as {hidden_size: 2048}"),
        (["target.shape=x", "+target.shapes.x={}"], "target.shapes.x is empty: expected sizes, such as {hidden_size: 2048}"),
        (["target.shape=x", "+target.shapes.x=5"], "shape: 5 is not a mapping of sizes; expected some of hidden_size, "),
        (["target.shape=7b", "target.device_map=auto"], "shape: an expanded target must be on one device; set device_map=null"),
        (
            ["method=[self_speculative]", "target.shape=1b"],
            "method.self_speculative: the layers that target.shape=1b adds do nothing, so skipping them says nothing about",
        ),
        (["suite.per_task=0"], "suite mini has no questions of task qa; it has none at all"),
        (
            ["engine=hf", "method=pld_spec_bench"],
            "engine hf has no method pld_spec_bench; of the chosen ones it has autoregressive",
        ),
        (["method=[sps]", "target.draft=null"], "this target names no draft model: set target.draft.path"),
        (["method=[sps]", "target.draft.path=/nowhere/at/all"], "no model at /nowhere/at/all: no such folder"),
        (["method=[rest]", "target.datastore=/nowhere/at/all"], "no datastore at /nowhere/at/all: no such folder"),
        (["method=[rest]", "target.datastore=null"], "this target names no datastore: set method.LABEL.datastore to a folder or"),
        (
            ["method=[self_speculative]", "target.checkpoints.self_speculative=null"],
            "this target names no skip set: set method.LABEL.checkpoint to a skip set's file or folder or random",
        ),
        (
            ["method=[self_speculative]", "method.self_speculative.checkpoint=/nowhere/at/all"],
            "no skip set at /nowhere/at/all: expected a YAML file, or a folder with skip.yaml",
        ),
        (
            ["method=[self_speculative]", "method.self_speculative.checkpoint=conf/skip/llama2_70b.yaml"],
            "conf/skip/llama2_70b.yaml: attention: the target has no layer 10; expected 0 to 1",
        ),
        (["method=[self_speculative]", "method.self_speculative.draft_tokens=0"], "draft_tokens=0: expected a whole number, at"),
        (
            ["method=[self_speculative]", "method.self_speculative.threshold=2"],
            "threshold=2: expected a number, at least 0 and at most 1",
        ),
    ],
)
def test_the_parts_of_a_run(refuse: Refuse, tiny: Tiny, overrides: list[str], expected: str) -> None:
    given = ["task=qa", "method=[]", "out=results/x", *tiny.overrides()]
    assert expected in refuse("run", *given, *overrides)


def test_a_task_that_never_fits(refuse: Refuse, tiny: Tiny, tmp_path: Path) -> None:
    short = tiny.model(tmp_path / "short", max_position_embeddings=16)
    line = refuse("run", *tiny.overrides("task=[qa,rag]", "method=[]", f"target.path={short}", "out=results/x"))
    assert line.startswith("task qa: its shortest prompt has ") and "the context of mini 16; tasks that fit: none" in line


def test_a_device_that_is_not_there(refuse: Refuse, tiny: Tiny) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    line = refuse("run", *tiny.overrides("task=qa", "method=[]", "target.device=cuda", "out=results/x"))
    assert line == "target.device=cuda: not on this machine; expected auto or cpu" or "mps" in line


def test_a_folder_that_is_no_run(refuse: Refuse, tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("dear")
    for out in ("letters", "letters/dear.txt"):
        line = refuse("run", *tiny.overrides("task=qa", "method=[]", f"out={out}"))
        assert line == f"out={out}: expected a run's folder, an empty one or a new one"


def test_a_folder_that_holds_another_run(refuse: Refuse, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused for every setting that changes what is measured, and not a byte of it changes."""
    monkeypatch.chdir(tmp_path)
    command = tiny.overrides("task=qa", "method=[pld]", "limit=1", "repeats=1", "out=run")
    execute(compose_run(command), Quiet())
    other = tiny.model(tmp_path / "other", layers=2, hidden_size=64)
    for change, expected in {
        "limit=2": "its limit is 1, here 2",
        "seed=1": "its seed is 0, here 1",
        "context=own": "its context is reference, here own",
        "sampling.max_new_tokens=9": "its sampling.max_new_tokens is 8, here 9",
        "task=rag": "its task.qa is {",
        "suite.seed=1": "its suite.seed is 0, here 1",
        "target.dtype=float64": "its target.dtype is float32, here float64",
        f"target.path={other}": "its target.path is ",
        "method.pld.length=3": "its method.pld.length is 10, here 3",
        "engine=hf": "its first engine is native, here hf",
        "engine=[hf,native]": "its first engine is native, here hf",
    }.items():
        line = refuse("run", *command, change)
        assert line.startswith("out=run holds another run: ") and expected in line and line.endswith("; choose another out")


def test_a_run_in_progress(refuse: Refuse, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = tiny.overrides("task=qa", "method=[]", "limit=1", "repeats=1", "out=run")
    with lock_run(tmp_path / "run"):
        assert "out=run: another process is writing there" in refuse("run", *command)
    execute(compose_run(command), Quiet())


def test_a_run_whose_weights_were_exchanged(refuse: Refuse, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path(shutil.copytree(tiny.target, tmp_path / "model"))
    command = tiny.overrides("task=qa", "method=[]", "limit=1", "repeats=1", "out=run", f"target.path={folder}")
    execute(compose_run(command), Quiet())
    tensors(folder, lambda weights: weights["model.norm.weight"].mul_(2))
    assert "out=run holds another run: its target_sha256 is " in refuse("run", *command, "repeats=2")


def test_a_run_whose_datastore_was_built_again(
    refuse: Refuse, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    build_datastore([[1, 2, 3]], tmp_path / "store", 1024, None, "a test")
    command = tiny.overrides("task=qa", "method=[rest]", "limit=1", "repeats=1", "out=run", "target.datastore=store")
    execute(compose_run(command), Quiet())
    shutil.rmtree(tmp_path / "store")
    build_datastore([[1, 2, 4]], tmp_path / "store", 1024, None, "a test")
    assert "out=run holds another run: its datastore of rest is " in refuse("run", *command, "repeats=2")


def test_a_wrong_class_gets_one_line_in_a_process_of_its_own() -> None:
    """No test runner hides there what libraries log."""
    command = [sys.executable, "-m", "specbench", "run", "method.pld._target_=methods.pld.PromptLookdown", "limit=1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "the nearest is PromptLookup" in done.stderr


@pytest.mark.parametrize("command", [["report", "run"], ["export", "spec_bench", "run"], ["paper"]])
def test_an_empty_folder_is_not_this_one(refuse: Refuse, command: list[str]) -> None:
    assert refuse(*command, "--out", "").startswith("argument --out: expected a folder; . is this one")
