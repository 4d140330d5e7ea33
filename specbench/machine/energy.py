"""Energy and throttling during a turn, from the machine's own counters.

An NVIDIA GPU counts its energy since the driver was loaded and reports why its clocks are reduced (NVML). A processor of Intel or
AMD counts the energy of each package, where the kernel lets users read it (RAPL), and how often heat throttled a core.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from specbench.machine.nvml import ask, find_gpu

PACKAGES = Path("/sys/class/powercap")
CORES = Path("/sys/devices/system/cpu")
REASONS = {  # bits of NVML's current clocks event reasons
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "heat",
    0x40: "heat",
    0x80: "power brake",
}


@dataclass(frozen=True)
class Reading:
    """energy_j: joules of the whole GPU or processor. throttled: why clocks were reduced. None: not counted here."""

    energy_j: float | None
    throttled: list[str] | None


class Meters:
    """Meters of one device: `stop` returns what was counted since `start`."""

    def __init__(self, device: torch.device) -> None:
        self._energy, self._throttled = _build_gpu_meters(device) if device.type == "cuda" else _build_processor_meters()

    def start(self) -> None:
        self._spent, _ = self._energy(), self._throttled()

    def stop(self) -> Reading:
        now = self._energy()
        pairs = list(zip(self._spent, now, strict=False))  # empty if the GPU stopped answering
        joules = sum((after - before) % wraps for (before, wraps), (after, _) in pairs) / 1e6 if pairs else None
        return Reading(joules, self._throttled())


Energy = Callable[[], list[tuple[int, int]]]  # of each package: microjoules so far, and where the counter wraps
Throttled = Callable[[], list[str] | None]  # why, since the last call (processor) or now (GPU)


def _build_processor_meters() -> tuple[Energy, Throttled]:
    folders = [folder for folder in sorted(PACKAGES.glob("intel-rapl:?")) if _read_number(folder / "energy_uj") is not None]
    wraps = [(_read_number(folder / "max_energy_range_uj") or 2**62) + 1 for folder in folders]
    cores = sorted(CORES.glob("cpu*/thermal_throttle/core_throttle_count"))
    last = [0]

    def energy() -> list[tuple[int, int]]:
        return [(_read_number(folder / "energy_uj") or 0, wrap) for folder, wrap in zip(folders, wraps, strict=True)]

    def throttled() -> list[str] | None:
        before, last[0] = last[0], sum(_read_number(core) or 0 for core in cores)
        return (["heat"] if last[0] > before else []) if cores else None

    return energy, throttled


def _read_number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def _build_gpu_meters(device: torch.device) -> tuple[Energy, Throttled]:
    gpu = find_gpu(device)

    def energy() -> list[tuple[int, int]]:
        millijoules = ask("nvmlDeviceGetTotalEnergyConsumption", gpu)
        return [] if millijoules is None else [(1_000 * millijoules, 2**62)]

    def throttled() -> list[str] | None:
        reasons = ask("nvmlDeviceGetCurrentClocksThrottleReasons", gpu)
        return None if reasons is None else sorted({name for bit, name in REASONS.items() if reasons & bit})

    return energy, throttled
