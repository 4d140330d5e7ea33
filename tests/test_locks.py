"""One process per device at a time, tested with real processes because the system keeps these locks."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from specbench import ROOT
from specbench.errors import InputError
from specbench.machine.devices import list_timed_devices
from specbench.machine.locks import lock_devices, lock_run
from specbench.records.run_directory import RunDirectory

Start = Callable[..., "subprocess.Popen[str]"]
NOBODY = 65534
HOLDER = """
import sys
from specbench.machine.locks import lock_devices
with lock_devices(sys.argv[1:], lambda message: print("waits", flush=True)):
    print("times", flush=True)
    sys.stdin.read()
print("done", flush=True)
"""


WRITER = """
import sys
from pathlib import Path
from specbench.machine.locks import lock_run
with lock_run(Path(sys.argv[1])):
    print("writes", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of the CPU's lock, in a temporary folder shared by all users."""
    tmp_path.chmod(0o1777)
    monkeypatch.chdir(tmp_path)  # another user may not look into the folders above
    monkeypatch.setattr("tempfile.tempdir", ".")
    return tmp_path / "specbench-cpu.lock"


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """start("cpu") starts a process that times on the CPU until its standard input ends."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with ExitStack() as started:

        def start_one(*given: str, script: str = HOLDER) -> subprocess.Popen[str]:
            command = [sys.executable, "-c", script, *given]
            process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            started.enter_context(process)
            started.callback(process.kill)
            return process

        yield start_one


def says(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


@contextmanager
def another_user() -> Iterator[None]:
    """Run as a user who owns nothing, if this process is root; else as the same user."""
    if os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def time_on_the_cpu() -> None:
    with lock_devices(["cpu"], waiting):
        pass


def test_a_second_process_says_that_it_waits_and_times_afterwards(start: Start) -> None:
    first = start("cpu")
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


def test_a_killed_process_frees_its_run(start: Start, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    writer = start(str(run.path), script=WRITER)
    assert says(writer) == "writes"
    with pytest.raises(InputError, match="another process is writing there"), lock_run(run.path):
        raise AssertionError("the run is taken")
    writer.kill()
    writer.wait()
    with lock_run(run.path):
        assert run.is_new(), "its lock is nothing that lies in the way of a run"


def test_a_lock_file_that_may_only_be_read_is_no_way_round(start: Start, tmp_path: Path) -> None:
    (tmp_path / "specbench-cpu.lock").touch(mode=0o444)
    holder = start("cpu")
    assert says(holder) == "times"
    with pytest.raises(TimeoutError), lock_devices(["cpu"], waiting):
        raise AssertionError("the device is taken")


def test_users_of_one_machine_share_a_device_s_lock(place: Path) -> None:
    before = os.umask(0o077)
    try:
        with lock_devices(["cpu"], waiting):
            assert place.stat().st_mode & 0o777 == 0o666
            with another_user(), pytest.raises(TimeoutError):
                time_on_the_cpu()
    finally:
        os.umask(before)
    with another_user():
        time_on_the_cpu()


@pytest.mark.parametrize(
    ("put", "message"),
    [
        (os.mkfifo, "not a file"),
        (os.mkdir, "not a file"),
        (lambda path: path.symlink_to("/dev/zero"), "not a file"),
        (lambda path: path.symlink_to("nowhere"), "not a file"),
        (lambda path: path.touch(mode=0), "cannot be opened: Permission denied"),
    ],
)
def test_what_is_no_lock_is_refused_by_its_path(place: Path, put: Callable[[Path], object], message: str) -> None:
    put(place)
    with another_user(), pytest.raises(InputError, match=rf"^{place.name}: {message}.*; remove it, or set TMPDIR"):
        time_on_the_cpu()
    run = RunDirectory("run")
    run.path.mkdir()
    put(run.path / ".lock")
    with (
        another_user(),
        pytest.raises(InputError, match=rf"^run/.lock: {message}.*; remove it, or choose another out"),
        lock_run(run.path),
    ):
        pass


def test_a_folder_that_may_not_be_written_is_said(place: Path) -> None:
    place.parent.chmod(0o555)
    with (
        another_user(),
        pytest.raises(InputError, match=f"^{place.name}: the lock cannot be created: Permission denied; set TMPDIR"),
    ):
        time_on_the_cpu()


def test_a_file_system_without_locks_stops_nothing_but_is_said(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_locks(file: int, blocking: bool) -> bool:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("specbench.machine.locks.lock_descriptor", no_locks)
    time_on_the_cpu()
    message = capsys.readouterr().err
    assert message.startswith(f"specbench: {place.name}: cannot be locked") and message.count("\n") == 1


def test_a_card_goes_by_its_uuid_and_a_device_map_may_take_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda card: SimpleNamespace(uuid=f"GPU-{card}"))
    assert list_timed_devices("cuda:1", None) == ["GPU-1"]
    assert list_timed_devices("auto", "auto") == ["GPU-0", "GPU-1"]
    assert list_timed_devices("cpu", None) == ["cpu"]


def waiting(message: str) -> None:
    assert "specbench-cpu.lock" in message and "TMPDIR" in message
    raise TimeoutError
