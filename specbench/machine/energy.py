"""Energy and throttling during a turn, as the machine itself counts them.

NVIDIA cards count the energy of the card since the driver was loaded and say why their clocks are held down (NVML); processors
of Intel and AMD count that of a package where the kernel lets users read it (RAPL), and how often heat held a core down.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from specbench.machine.nvml import ask, find_card

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
        self._energy, self._throttled = _build_card_meters(device) if device.type == "cuda" else _build_processor_meters()

    def start(self) -> None:
        self._spent, _ = self._energy(), self._throttled()

    def stop(self) -> Reading:
        now = self._energy()
        pairs = list(zip(self._spent, now, strict=False))  # a card that fell silent has none
        joules = sum((after - before) % wraps for (before, wraps), (after, _) in pairs) / 1e6 if pairs else None
        return Reading(joules, self._throttled())


Energy = Callable[[], list[tuple[int, int]]]  # microjoules so far, and where the counter starts again, of each package
Throttled = Callable[[], list[str] | None]  # since it was last asked, or now


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


def _build_card_meters(device: torch.device) -> tuple[Energy, Throttled]:
    card = find_card(device)

    def energy() -> list[tuple[int, int]]:
        millijoules = ask("nvmlDeviceGetTotalEnergyConsumption", card)
        return [] if millijoules is None else [(1_000 * millijoules, 2**62)]

    def throttled() -> list[str] | None:
        reasons = ask("nvmlDeviceGetCurrentClocksThrottleReasons", card)
        return None if reasons is None else sorted({name for bit, name in REASONS.items() if reasons & bit})

    return energy, throttled
