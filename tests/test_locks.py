"""One process a device at a time: real processes, since the system keeps these locks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from specbench import ROOT
from specbench.machine.devices import timed_devices
from specbench.machine.locks import sole_timer

Start = Callable[..., "subprocess.Popen[str]"]
HOLDER = """
import sys
from specbench.devices import timed_devices
from specbench.locks import sole_timer
with sole_timer(sys.argv[1:], lambda: print("waits", flush=True)):
    print("times", flush=True)
    sys.stdin.read()
print("done", flush=True)
"""


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """start("cpu"): a process that times on the CPU until its standard input ends."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with ExitStack() as started:

        def one(*devices: str) -> subprocess.Popen[str]:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            process = subprocess.Popen([sys.executable, "-c", HOLDER, *devices], cwd=ROOT, **pipes)
            started.enter_context(process)
            started.callback(process.kill)
            return process

        yield one


def says(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def test_a_second_process_says_that_it_waits_and_times_afterwards(start: Start) -> None:
    first, second = start("cpu"), None
    assert says(first) == "times"
    second = start("cpu")
    assert says(second) == "waits"
    assert first.stdin
    first.stdin.close()
    assert says(first) == "done" and says(second) == "times"


def test_a_killed_process_frees_its_device(start: Start) -> None:
    first = start("cpu")
    assert says(first) == "times"
    second = start("cpu")
    assert says(second) == "waits"
    first.kill()
    assert says(second) == "times"


def test_other_devices_are_free(start: Start) -> None:
    first, second = start("GPU-a"), start("cpu")
    assert says(first) == says(second) == "times"
    third = start("GPU-b", "GPU-a")
    assert says(third) == "waits", "a model on two cards waits for both"


def test_another_user_s_lock_file_is_no_way_round(start: Start, tmp_path: Path) -> None:
    (tmp_path / "specbench-cpu.lock").touch(mode=0o444)
    holder = start("cpu")
    assert says(holder) == "times"
    with pytest.raises(TimeoutError), sole_timer(["cpu"], waiting):
        raise AssertionError("the device is taken")


def test_a_card_goes_by_its_uuid_and_a_device_map_may_take_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda card: SimpleNamespace(uuid=f"GPU-{card}"))
    assert timed_devices("cuda:1", None) == ["GPU-1"]
    assert timed_devices("auto", "auto") == ["GPU-0", "GPU-1"]
    assert timed_devices("cpu", None) == ["cpu"]


def waiting() -> None:
    raise TimeoutError
