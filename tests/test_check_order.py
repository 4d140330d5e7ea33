"""What needs no device is refused before anybody waits for it; what needs no torch, before torch is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from specbench import ROOT
from specbench.machine.locks import lock_devices
from tests.conftest import Refuse, Tiny
from tests.test_compose import write

pytestmark = pytest.mark.full
LIGHT = """
import sys
from specbench.cli.main import main
sys.argv = ["specbench", *sys.argv[1:]]
try:
    main()
except SystemExit as stop:
    print(stop.code, *sorted({"torch", "transformers", "datasets"} & set(sys.modules)))
"""


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Another process times on the CPU: whoever waits for it fails."""

    def wait(message: str) -> None:
        raise AssertionError(message)

    with lock_devices(["cpu"], wait):
        monkeypatch.setattr("specbench.running.execute._say_waiting", lambda watcher, message: wait(message))
        monkeypatch.setattr("specbench.running.progress.Display.announce", lambda display, lines: list(map(wait, lines)))
        yield


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["run", "target.shape=3b"], "target.shape=3b: mini has "),
        (
            ["run", "target.shape=x", "+target.shapes.x={hidden_size: 8}"],
            "target: shape: hidden_size=8 is smaller",
        ),
        (["run", "target.shape=x", "+target.shapes.x={intermediate_size: 100000000}"], "target: shape: "),
        (["run", "target.shape=100m", "target.device_map=auto"], "target.shape: an expanded target must be on one device"),
        (["run", "target.path=/no/where"], "no model at /no/where: no such folder"),
        (["run", "target.dtype=half"], "target.dtype=half: on cpu expected "),
        (["run", "target.device=cuda:99"], "target.device=cuda:99: not on this machine"),
        (["run", "method=[sps]", "target.draft.path=/no/where"], "target.draft: no model at /no/where: no such folder"),
        (["run", "method=[sps]", "target.draft.dtype=half"], "target.draft.dtype=half: on cpu expected "),
        (["run", "method=[sps]", "target.draft=null"], "this target names no draft model"),
        (
            ["run", "method=[medusa]", "method.medusa.checkpoint=/no/where"],
            "method.medusa: no checkpoint at /no/where: ",
        ),
        (["run", "method=[medusa]", "method.medusa.checkpoint=null"], "method.medusa: this target names no checkpoint"),
        (["run", "method=[medusa]", "method.medusa.dtype=half"], "method.medusa: dtype=half: on cpu expected "),
        (["run", "method=[rest]", "target.datastore=/no/where"], "no datastore at /no/where"),
        (
            ["run", "method=[self_speculative]", "method.self_speculative.checkpoint=/no"],
            "no skip set at /no",
        ),
        (["run", "engine=hf", "method=[eagle]"], "engine hf has no method eagle"),
        (["run", "suite=jsonl", "suite.path=nowhere"], "nowhere: cannot be read: no such file"),
        (["run", "task=[royal]"], "task=royal: no such task"),
        (["run", "method.pld.length=0"], "method.pld.length=0: expected a whole number"),
        (["cost", "target.shape=3b"], "target.shape=3b: mini has "),
        (["cost", "target.path=/no/where"], "target: no model at /no/where"),
    ],
)
def test_what_needs_no_device_does_not_wait_for_it(command: list[str], expected: str, refuse: Refuse, held: None) -> None:
    assert expected in refuse(*command, "out=run")


@pytest.mark.parametrize(
    "command",
    [
        ["list"],
        ["run", "limt=3"],
        ["run", "limit=0"],
        ["run", "threads=2147483648"],
        ["run", "target.shape=3b"],
        ["run", "+target.zzz=1"],
        ["run", "method=pdl"],
        ["run", "task=[royal]"],
        ["run", "suite=jsonl", "suite.path=nowhere"],
        ["run", "suite.per_task=x"],
        ["run", "out=docs"],
        ["run", "sampling.top_p=1e-300"],
        ["run", "--config-dir", "nowhere"],
        ["certify", "draws=1"],
        ["certify", "task=[royal]"],
        ["train"],
        ["datastore", "build", "chunk_tokens=0"],
        ["plan", "--pilot", "x", "--effect", "2"],
        ["replay", "--of", "x", "limit=0"],
    ],
)
def test_what_needs_no_torch_does_not_import_it(command: list[str], tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", LIGHT, *command], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.stdout.splitlines()[-1] == ("0" if command == ["list"] else "2"), done
    assert done.stderr.count("\n") == (command != ["list"]), done.stderr


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("method/mine.yaml", "# @package method.mine\n[\n", "mine.yaml:3: invalid YAML"),
        ("method/mine.yaml", "# @package method.mine\n\0\n", "mine.yaml: invalid YAML"),
        ("target/mine.yaml", b"\xff\n", "mine.yaml: not UTF-8"),
    ],
)
@pytest.mark.parametrize("command", ["list", "cost"])
def test_a_broken_yaml_is_named(
    command: str, name: str, text: str | bytes, expected: str, refuse: Refuse, tmp_path: Path
) -> None:
    write(tmp_path / "mine", name, text)
    chosen = {"list": [], "cost": [name.replace("/", "=").removesuffix(".yaml")]}[command]
    assert expected in refuse(command, "--config-dir", "mine", *chosen)


def test_a_pipe_among_the_yamls_is_refused(refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "mine" / "tree").mkdir(parents=True)
    os.mkfifo(tmp_path / "mine" / "tree" / "mine.yaml")
    assert "mine.yaml: expected a file, found a pipe" in refuse("run", "--config-dir", "mine")


HOLDER = """
import sys
from specbench.machine.locks import lock_devices
with lock_devices(["cpu"], print):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_run_that_waits_says_so_on_stderr_with_the_lock_s_file(tiny: Tiny, tmp_path: Path) -> None:
    overrides = tiny.overrides("method=[]", "limit=1", "repeats=1", f"out={tmp_path}/run")
    command = [sys.executable, "-m", "specbench", "run", *overrides]
    options: dict[str, Any] = {"text": True, "env": {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}}
    with subprocess.Popen([sys.executable, "-c", HOLDER], stdin=-1, stdout=-1, **options) as holder:
        assert holder.stdout and holder.stdin and holder.stdout.readline() == "held\n"
        with subprocess.Popen(command, stderr=-1, stdout=-1, cwd=tmp_path, **options) as run:
            assert run.stderr and run.stdout
            line = next(line for line in run.stderr if "waiting" in line)
            holder.stdin.close()
            run.stdout.read()
            assert run.wait() == 0
    assert line.startswith("waiting for another run on this device, which holds ")
    assert f"{tmp_path}/specbench-cpu.lock (TMPDIR" in line
