"""What else used the machine: from planted counters, never from this machine's own load."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specbench.machine import load
from specbench.machine.load import SHARE, CardMeter, Counts, LoadMeter, SystemCounters
from tests.conftest import Driver

CPU = torch.device("cpu")


class Times(NamedTuple):
    """psutil's, where there is neither nice nor steal."""

    user: float
    system: float
    idle: float


START = Counts(now=10.0, wall=1e9, own=5.0, ran=4.0, thread=7, busy=100.0, stolen=1.0, waits={7: 0.5, 8: 0.5})


def quiet(seconds: float, cores: int = 2, **more: Any) -> Counts:
    """What a run that keeps all cores busy has counted after so many seconds, with `more` of some counters."""
    after = replace(
        START,
        now=START.now + seconds,
        wall=START.wall + seconds,
        own=START.own + cores * seconds,
        ran=START.ran + seconds,
        busy=100.0 + cores * seconds,
    )
    return replace(after, **more)


def reasons(after: Counts, before: Counts = START, cores: int = 2, in_process: bool = True) -> list[str] | None:
    counts = iter([before, before, after])
    meter = LoadMeter(CPU, read=lambda: next(counts), cores=cores)
    meter.start()
    return meter.stop(in_process).find_reasons()


def test_a_run_alone_on_all_cores_is_quiet() -> None:
    assert all(reasons(quiet(seconds)) == [] for seconds in (1e-6, 0.001, 0.05, 0.3, 1.0, 60.0, 3600.0))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"busy": 102.0, "own": 5.5}, "other processes: 75% of the cores"),
        ({"waits": {7: 0.5, 8: 0.8}}, "waiting for a core: 30% of the time"),
        ({"waits": {7: 0.5, 8: 0.5, 9: 0.2}}, "waiting for a core: 20% of the time"),
        ({"stolen": 1.4}, "taken by the host: 20% of the cores"),
        ({"ran": 4.4}, "standing still: 60% of the time"),
        ({"wall": 1e9 + 9.0}, "clocks: 8.0 s apart"),
        ({"wall": 1e9 - 9.0}, "clocks: 10.0 s apart"),
    ],
)
def test_each_kind_of_disturbance_is_named_with_its_size(more: dict[str, Any], said: str) -> None:
    assert reasons(quiet(1.0, **more)) == [said], more
    assert reasons(quiet(1.0)) == []


def test_a_thread_that_waits_does_not_stand_still_and_what_the_host_takes_counts_once() -> None:
    assert reasons(quiet(1.0, ran=4.7, waits={7: 0.8, 8: 0.5})) == ["waiting for a core: 30% of the time"]
    assert reasons(quiet(1.0, ran=4.7, stolen=1.3)) == ["taken by the host: 15% of the cores"]


def test_what_is_below_a_twentieth_is_the_machines_own() -> None:
    less = 0.9 * SHARE
    counts = quiet(10.0, busy=120.0 + 20 * less, waits={7: 0.5 + 10 * less, 8: 0.5}, stolen=1.0 + 20 * less, ran=14.0 - 20 * less)
    assert reasons(counts) == []


@pytest.mark.parametrize("seconds", [0.005, 0.02, 0.05, 0.1, 0.3])
def test_a_short_turn_is_not_blamed_for_the_resolution_of_the_counters(seconds: float) -> None:
    """Each core's counters move in hundredths of a second; a kernel thread may run for a millisecond."""
    coarse = quiet(seconds, busy=100.0 + 2 * seconds + 0.02, stolen=1.02, waits={7: 0.504, 8: 0.5}, ran=4.0 + seconds - 0.004)
    assert reasons(coarse) == []


def test_a_short_turn_that_lost_its_core_is_marked_all_the_same() -> None:
    assert reasons(quiet(0.05, waits={7: 0.54, 8: 0.5}, ran=4.01)) == ["waiting for a core: 80% of the time"]


@settings(max_examples=200)
@given(
    seconds=st.floats(0.001, 100),
    cores=st.integers(1, 256),
    used=st.floats(0, 1),
    rounding=st.floats(-1, 1),
)
def test_rounded_counters_of_any_quiet_run_on_any_machine_mark_nothing(
    seconds: float, cores: int, used: float, rounding: float
) -> None:
    """Ticks are booked whole: their sum errs by the standard deviation of that many draws."""
    ticks = cores * seconds / load.TICK
    error = rounding * load.TICK * (2 * (ticks * used * (1 - used)) ** 0.5 + cores**0.5)
    own = used * cores * seconds
    after = quiet(seconds, cores, own=5.0 + own, busy=100.0 + own + error, stolen=1.0)
    assert reasons(after, cores=cores) == []


def test_an_engine_in_another_process_lets_this_thread_sleep() -> None:
    assert reasons(quiet(1.0, ran=4.0), in_process=False) == []


def test_what_is_not_counted_here_is_left_out() -> None:
    nothing = replace(START, busy=None, stolen=None, waits=None)
    assert reasons(quiet(1.0, busy=None, stolen=None, waits=None), nothing) is None
    assert reasons(quiet(1.0, busy=None, stolen=None, waits=None, wall=1e9 + 9.0), nothing) == ["clocks: 8.0 s apart"]
    partly = replace(START, stolen=None)
    assert reasons(quiet(1.0, stolen=None), partly) == []


def test_what_is_watched_is_said_in_the_words_of_the_reasons() -> None:
    everything = ["other processes", "waiting for a core", "taken by the host", "standing still", "clocks"]
    assert LoadMeter(CPU, read=lambda: START).watched == everything
    assert LoadMeter(CPU, read=lambda: replace(START, busy=None, stolen=None, waits=None)).watched == ["clocks"]
    gpu = LoadMeter(torch.device("mps"), read=lambda: START)
    assert gpu.watched == [name for name in everything if name != "standing still"], "a thread may sleep while a GPU works"


def test_the_systems_counters_go_on_and_know_this_thread() -> None:
    counters = SystemCounters()
    first, second = counters.read(), counters.read()
    assert second.now > first.now and second.own >= first.own and second.ran >= first.ran
    assert second.busy is None or first.busy is None or second.busy >= first.busy
    assert second.waits is None or second.thread in second.waits
    assert os.getpid() in counters.processes


def test_without_proc_and_with_counters_of_zeros_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(load, "PROC", tmp_path)
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: [Times(0.0, 0.0, 0.0)] * 256)
    counts = SystemCounters().read()
    assert (counts.busy, counts.stolen, counts.waits) == (None, None, None) and counts.own > 0
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: [])
    assert SystemCounters().read().busy is None


def test_child_processes_are_the_runs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    child: Any = SimpleNamespace(pid=2**30, cpu_times=lambda: (1000.0, 1.0, 200.0, 0.0, 0.0))
    gone: Any = SimpleNamespace(pid=2**30 + 1, cpu_times=lambda: (_ for _ in ()).throw(psutil.NoSuchProcess(1)))
    monkeypatch.setattr(psutil.Process, "children", lambda self, recursive: [child, gone])
    counters = SystemCounters()
    assert counters.read().own < 1000.0, "a child is looked up between turns, never inside"
    counters.find_children()
    assert counters.read().own > 1201.0


def test_a_turn_may_count_child_processes_as_others(monkeypatch: pytest.MonkeyPatch) -> None:
    children: list[Any] = [SimpleNamespace(pid=2**30 + i, cpu_times=lambda: (1000.0, 0.0, 0.0, 0.0)) for i in range(2)]
    monkeypatch.setattr(psutil.Process, "children", lambda self, recursive: children)
    meter = LoadMeter(CPU)
    for foreign, expected in (((), 2), ([2**30], 1), ([2**30, 2**30 + 1], 0), ((), 2)):
        meter.start(foreign)
        assert meter._before.own // 1000 == expected


def test_a_child_that_ends_takes_no_time_with_it() -> None:
    busy = subprocess.Popen([sys.executable, "-c", "sum(range(5_000_000)); print(flush=True); input()"], stdin=-1, stdout=-1)
    assert busy.stdout and busy.stdout.readline()
    counters = SystemCounters()
    counters.find_children()
    before = counters.read().own
    busy.communicate(b"end")
    assert counters.read().own >= before - 0.02, "the counters' unit is 0.01 s"


def on_gpu(driver: Driver, running: list[int], samples: list[tuple[int, int]]) -> list[str] | None:
    driver.answers["nvmlDeviceGetComputeRunningProcesses"] = [SimpleNamespace(pid=pid) for pid in running]
    used = [SimpleNamespace(pid=pid, smUtil=percent) for pid, percent in samples]
    driver.answers["nvmlDeviceGetProcessUtilization"] = used
    counts = iter([START, START, quiet(1.0, ran=4.0, busy=200.0)])
    meter = LoadMeter(torch.device("cuda", 0), read=lambda: next(counts), cores=64)
    meter.start()
    return meter.stop().find_reasons()


def test_on_a_gpu_the_card_counts_and_not_the_cores(driver: Driver) -> None:
    mine = os.getpid()
    assert on_gpu(driver, [mine], []) == []
    assert on_gpu(driver, [12345678], [(12345678, 99)]) == [], "in a container we have another number"
    assert on_gpu(driver, [mine, 99999999], [(mine, 90), (99999999, 3)]) == []
    assert on_gpu(driver, [mine, 99999999], [(mine, 60), (99999999, 20), (99999999, 40)]) == ["other processes: 30% of the GPU"]
    assert on_gpu(driver, [88888888, 99999999], [(99999999, 40)]) == [], "which of them is ours is not known"


def test_in_a_container_our_number_is_learnt_while_we_are_alone(driver: Driver) -> None:
    running: list[SimpleNamespace] = []
    driver.answers["nvmlDeviceGetComputeRunningProcesses"] = lambda gpu: running
    driver.answers["nvmlDeviceGetProcessUtilization"] = [SimpleNamespace(pid=77777777, smUtil=80)]
    measure = CardMeter(torch.device("cuda", 0), SystemCounters())
    assert measure(0.0) is None, "the driver shows no process here, so it would show no other either"
    running.append(SimpleNamespace(pid=88888888))
    assert measure(0.0) == 0.0
    running.append(SimpleNamespace(pid=77777777))
    assert measure(0.0) == 0.8
