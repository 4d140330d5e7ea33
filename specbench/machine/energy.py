"""Energy and throttling during a turn, as the machine itself counts them.

NVIDIA cards count the energy of the card since the driver was loaded and say why their clocks are held down (NVML); processors
of Intel and AMD count that of a package where the kernel lets users read it (RAPL), and how often heat held a core down.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

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
    """energy_j: joules of the whole card or processor; None where nobody counts. throttled: why clocks were held down."""

    energy_j: float | None
    throttled: list[str] | None


class Meters:
    """Of one device, between `start` and `stop`."""

    def __init__(self, device: torch.device) -> None:
        self._energy, self._throttled = _of_card(device) if device.type == "cuda" else _of_processor()

    def start(self) -> None:
        self._spent, _ = self._energy(), self._throttled()

    def stop(self) -> Reading:
        now = self._energy()
        pairs = list(zip(self._spent, now, strict=True))
        joules = sum((after - before) % wraps for (before, wraps), (after, _) in pairs) / 1e6 if pairs else None
        return Reading(joules, self._throttled())


Energy = Callable[[], list[tuple[int, int]]]  # microjoules so far, and where the counter starts again, of each package
Throttled = Callable[[], list[str] | None]  # since it was last asked, or now


def _of_processor() -> tuple[Energy, Throttled]:
    folders = [folder for folder in sorted(PACKAGES.glob("intel-rapl:?")) if _number(folder / "energy_uj") is not None]
    wraps = [(_number(folder / "max_energy_range_uj") or 2**62) + 1 for folder in folders]
    cores = sorted(CORES.glob("cpu*/thermal_throttle/core_throttle_count"))
    last = [0]

    def energy() -> list[tuple[int, int]]:
        return [(_number(folder / "energy_uj") or 0, wrap) for folder, wrap in zip(folders, wraps, strict=True)]

    def throttled() -> list[str] | None:
        before, last[0] = last[0], sum(_number(core) or 0 for core in cores)
        return (["heat"] if last[0] > before else []) if cores else None

    return energy, throttled


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def _of_card(device: torch.device) -> tuple[Energy, Throttled]:
    library = _nvml()
    if library is None:
        return (lambda: []), (lambda: None)
    handle, value = _handle(library, device.index or 0), ctypes.c_ulonglong()

    def energy() -> list[tuple[int, int]]:
        failed = library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(value))
        return [] if failed else [(1_000 * value.value, 2**62)]

    def throttled() -> list[str] | None:
        if library.nvmlDeviceGetCurrentClocksThrottleReasons(handle, ctypes.byref(value)):
            return None
        return sorted({name for bit, name in REASONS.items() if value.value & bit})

    return energy, throttled


@cache
def _nvml() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    return library if library.nvmlInit_v2() == 0 else None


def _handle(library: ctypes.CDLL, index: int) -> ctypes.c_void_p:
    """Of the card that torch calls by this index."""
    handle, uuid = ctypes.c_void_p(), getattr(torch.cuda.get_device_properties(index), "uuid", None)
    if uuid is None or library.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}".encode(), ctypes.byref(handle)):
        library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle))
    return handle
