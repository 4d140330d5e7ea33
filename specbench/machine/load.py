"""What else used the machine during a turn. Counters are read before the turn's clock starts and after it has stopped.

A turn is disturbed if, for more than SHARE of the cores or of its time,

    other processes      used the cores that the run may use, or its GPU (NVML);
    waiting for a core   one of the run's own threads was ready to run, but another had its core (/proc/PID/task/TID/schedstat);
    taken by the host    the hypervisor gave the cores of this virtual machine to others (steal time);
    standing still       the thread that is timed neither ran nor waited for a core: stopped, frozen, or waiting for a disk;
    clocks               the wall clock and the monotonic one diverged: the machine slept, was paused, or its clock was set.

The run's own threads and child processes are not others. Interrupts are charged to nobody. What a system does not count is left
out; run.json lists what was watched.
"""

import os
import threading
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import psutil
import torch

from specbench.machine.nvml import ask, find_gpu

SHARE = 0.05  # of the cores or of the time; more is a disturbance
TICK = 0.01  # seconds: the unit of the system's counters of its cores
SIGMAS = 3  # standard deviations of what those counters may err by before others count as present
HOUSEKEEPING = 0.005  # seconds: the kernel's own work makes a thread wait as long, now and then
STILL = 0.02  # seconds: page faults make a thread stand still for as long
JUMP = 0.1  # seconds between the clocks; clocks that are only slewed stay below
RESCAN = 10.0  # seconds: how often child processes are looked up, which takes milliseconds
PROC = Path("/proc")

OTHERS, WAITING, TAKEN, STILL_STANDING, CLOCKS = (
    "other processes", "waiting for a core", "taken by the host", "standing still", "clocks",
)  # fmt: skip


@dataclass(frozen=True)
class Counts:
    """Counters of a moment, in seconds; None: not counted here."""

    now: float  # monotonic clock
    wall: float  # wall clock
    own: float  # processor time of the run's processes, those that have ended included
    ran: float  # processor time of this thread
    thread: int  # this thread's id
    busy: float | None  # processor time of all processes, on the cores that the run may use
    stolen: float | None  # time that the host took from those cores
    waits: dict[int, float] | None  # by thread of the run's processes: time spent ready, without a core


@dataclass(frozen=True)
class Load:
    """What was counted during a turn, in seconds, cores added up; None: not counted here."""

    cores: int
    seconds: float
    own: float
    others: float | None
    stolen: float | None
    waited: float | None  # by the thread that waited longest
    still: float | None
    clock_gap: float  # how far the wall clock and the monotonic one diverged
    card: float | None  # share of the GPU's multiprocessors that other processes used

    def find_reasons(self) -> list[str] | None:
        """Return what disturbed the turn, as `kind: how much`; empty for a quiet one, None if next to nothing is counted here."""
        cores = self.cores * self.seconds
        excess = {
            f"{OTHERS}: {{:.0%}} of the cores": (self.others, cores, self._bound_error(self.own / cores)),
            f"{OTHERS}: {{:.0%}} of the GPU": (self.card, 1.0, 0.0),
            f"{WAITING}: {{:.0%}} of the time": (self.waited, self.seconds, HOUSEKEEPING),
            f"{TAKEN}: {{:.0%}} of the cores": (self.stolen, cores, self._bound_error(0.0)),
            f"{STILL_STANDING}: {{:.0%}} of the time": (self.still, self.seconds, STILL),
        }
        reasons = [
            text.format(found / whole)
            for text, (found, whole, error) in excess.items()
            if found is not None and found > SHARE * whole + error
        ]
        if self.clock_gap > JUMP + SHARE * self.seconds:
            reasons.append(f"{CLOCKS}: {self.clock_gap:.1f} s apart")
        return reasons if reasons or any(found is not None for found, _, _ in excess.values()) else None

    def _bound_error(self, used: float) -> float:
        """Return by how many seconds the cores' counters may err: each tick is charged in full to whatever is running then.

        used: share of the cores that the run itself used. A core that is always or never busy errs only by rounding.
        """
        ticks = self.seconds / TICK
        used = min(max(used, 0.0), 1.0)
        return SIGMAS * TICK * sqrt(self.cores * (1 + used * (1 - used) * ticks))


class LoadMeter:
    """Watches the machine between `start` and `stop`. read and card: where the counters come from; by default the system."""

    def __init__(
        self,
        device: torch.device,
        read: Callable[[], Counts] | None = None,
        card: Callable[[float], float | None] | None = None,
        cores: int | None = None,
    ) -> None:
        self._counters = counters = SystemCounters()
        self._counts_cores = device.type != "cuda"  # elsewhere other processes may use the cores: what counts is the card
        self._times_thread = device.type == "cpu"  # a thread may sleep while a GPU works
        self._read = read or counters.read
        self._cores = cores or len(counters.cores)
        self._card = card or (CardMeter(device, counters) if device.type == "cuda" else lambda since: None)
        self._before = self._read()

    @property
    def watched(self) -> list[str]:
        """What is watched here, in the words of the reasons."""
        now = self._read()
        known = {
            OTHERS: now.busy is not None if self._counts_cores else self._card(now.wall) is not None,
            WAITING: now.waits is not None,
            TAKEN: now.stolen is not None,
            STILL_STANDING: self._times_thread and now.waits is not None,
            CLOCKS: True,
        }
        return [name for name, is_known in known.items() if is_known]

    def start(self, foreign: Collection[int] = (), helpers: Collection[int] = ()) -> None:
        """Begin a turn. foreign: child processes that take no part in it; they count as others.

        helpers: processes that work for it without being children.
        """
        self._counters.find_children()
        self._counters.foreign = foreign
        self._counters.help_from(helpers)
        self._before = self._read()

    def stop(self, in_process: bool = True) -> Load:
        """Return what was counted since `start`. in_process: the calling thread does the work."""
        before, now = self._before, self._read()
        seconds, own = now.now - before.now, now.own - before.own
        busy, stolen = _subtract(now.busy, before.busy), _subtract(now.stolen, before.stolen)
        waits = _subtract_waits(now.waits, before.waits) if in_process else None  # a server's threads may wait for its client
        still = None
        if self._times_thread and in_process and waits is not None:
            still = seconds - (now.ran - before.ran) - waits.get(now.thread, 0.0) - (stolen or 0.0)
        return Load(
            cores=self._cores,
            seconds=max(seconds, 1e-9),
            own=own,
            others=busy - own if self._counts_cores and busy is not None else None,
            stolen=stolen,
            waited=None if waits is None else max(waits.values(), default=0.0),
            still=still,
            clock_gap=abs(now.wall - before.wall - seconds),
            card=self._card(before.wall),
        )


def _subtract(now: float | None, before: float | None) -> float | None:
    return None if now is None or before is None else now - before


def _subtract_waits(now: dict[int, float] | None, before: dict[int, float] | None) -> dict[int, float] | None:
    """Return how long each thread waited; a thread that began meanwhile, since it began."""
    return None if now is None or before is None else {thread: wait - before.get(thread, 0.0) for thread, wait in now.items()}


class SystemCounters:
    """The counters of this machine, by psutil and /proc."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self.cores = _list_cores(self._process)
        self._children: list[psutil.Process] = []
        self.foreign: Collection[int] = ()  # children that count as others
        self._helpers: dict[int, psutil.Process] = {}
        self._searched = -RESCAN

    def read(self) -> Counts:
        now, wall = time.perf_counter(), time.time()
        busy, stolen = _read_cores(self.cores)
        ended = os.times()
        own = time.process_time() + ended.children_user + ended.children_system + sum(map(_read_time, self._own_children))
        waits = _read_waits(self.processes)
        return Counts(now, wall, own, time.thread_time(), threading.get_native_id(), busy, stolen, waits)

    @property
    def processes(self) -> list[int]:
        """The run's processes."""
        return [self._process.pid, *(child.pid for child in self._own_children)]

    @property
    def _own_children(self) -> list[psutil.Process]:
        return [child for child in (*self._children, *self._helpers.values()) if child.pid not in self.foreign]

    def help_from(self, helpers: Collection[int]) -> None:
        """Count other processes as the run's own, until the next call."""
        self._helpers = {pid: process for pid, process in self._helpers.items() if pid in helpers}
        for pid in set(helpers) - set(self._helpers):
            with suppress(psutil.Error, OSError):
                self._helpers[pid] = psutil.Process(pid)

    def find_children(self) -> None:
        """Look up the child processes if the last look-up is long ago.

        Not during a turn: a new child would add its past time to it.
        """
        now = time.perf_counter()
        if now - self._searched >= RESCAN:
            self._searched = now
            with suppress(psutil.Error, OSError):
                self._children = self._process.children(recursive=True)


def _list_cores(process: psutil.Process) -> list[int]:
    every = list(range(psutil.cpu_count() or 1))
    return process.cpu_affinity() or every if hasattr(process, "cpu_affinity") else every


def _read_cores(cores: Iterable[int]) -> tuple[float | None, float | None]:
    """Return the seconds for which processes used these cores, and those that a host took from them. None: not counted here."""
    try:
        times = psutil.cpu_times(percpu=True)
        chosen = [times[core] for core in cores]  # a core that is switched off has no line, and shifts the others
    except (psutil.Error, OSError, IndexError, ValueError):
        return None, None
    if not any(map(sum, chosen)):  # sandboxes that show zeros
        return None, None
    busy = sum(core.user + core.system + getattr(core, "nice", 0.0) for core in chosen)
    return busy, sum(core.steal for core in chosen) if hasattr(chosen[0], "steal") else None


def _read_time(process: psutil.Process) -> float:
    """Return the processor time of a child process and of its ended children; 0 if it has ended itself: its time is then ours."""
    try:
        return sum(process.cpu_times()[:4])  # user, system, and both of its children
    except (psutil.Error, OSError):
        return 0.0


def _read_waits(processes: Iterable[int]) -> dict[int, float] | None:
    """Return, by thread, the seconds spent ready to run, without a core; None where the kernel does not count them."""
    waits: dict[int, float] = {}
    for process in processes:
        with suppress(OSError):
            for thread in (PROC / str(process) / "task").iterdir():
                waits |= _read_wait(thread)
    return waits or None


def _read_wait(thread: Path) -> dict[int, float]:
    """Return its thread id and wait; nothing if it has ended."""
    try:
        _, nanoseconds, _ = (thread / "schedstat").read_bytes().split()
    except (OSError, ValueError):
        return {}
    return {int(thread.name): int(nanoseconds) / 1e9}


class CardMeter:
    """The share of a GPU that other processes have used since a wall-clock time; None if it is not known."""

    def __init__(self, device: torch.device, counters: SystemCounters) -> None:
        self._gpu = find_gpu(device)
        self._counters = counters
        self._ours: set[int] = set()

    def __call__(self, since: float) -> float | None:
        running = ask("nvmlDeviceGetComputeRunningProcesses", self._gpu)
        present = {process.pid for process in running or ()}
        ours = self._find_ours(present)
        if not ours or present == ours:
            return 0.0 if ours else None
        samples = ask("nvmlDeviceGetProcessUtilization", self._gpu, int(since * 1e6))
        return None if samples is None else _sum_utilisation(samples, ours)

    def _find_ours(self, present: set[int]) -> set[int]:
        """Return our processes by the driver's ids.

        In a container these differ from ours and are learnt while no one else uses the GPU.
        """
        known = present & (self._ours | set(self._counters.processes))
        self._ours = known or (present if len(present) == 1 else self._ours)
        return present & self._ours


def _sum_utilisation(samples: Iterable[Any], ours: set[int]) -> float:
    """Return the share of the multiprocessors' time that other processes used: each one's mean, added up."""
    shares: dict[int, list[float]] = {}
    for sample in samples:
        if sample.pid not in ours:
            shares.setdefault(sample.pid, []).append(sample.smUtil / 100)
    return sum(sum(values) / len(values) for values in shares.values())
