"""Energy and throttling are read where the machine counts them, and absent elsewhere."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import torch

from specbench.machine import energy as meters
from specbench.machine.energy import Meters

CPU = torch.device("cpu")


@pytest.fixture
def processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two packages, whose counters start again at 1,000 µJ, and two cores."""
    for number in range(2):
        package = tmp_path / "powercap" / f"intel-rapl:{number}"
        package.mkdir(parents=True)
        (package / "max_energy_range_uj").write_text("999\n")
        (package / "energy_uj").write_text("900\n")
        core = tmp_path / "cpu" / f"cpu{number}" / "thermal_throttle"
        core.mkdir(parents=True)
        (core / "core_throttle_count").write_text("3\n")
    monkeypatch.setattr(meters, "PACKAGES", tmp_path / "powercap")
    monkeypatch.setattr(meters, "CORES", tmp_path / "cpu")
    return tmp_path


def test_joules_of_all_packages_across_the_end_of_a_counter(processor: Path) -> None:
    read = Meters(CPU)
    read.start()
    (processor / "powercap" / "intel-rapl:0" / "energy_uj").write_text("950")
    (processor / "powercap" / "intel-rapl:1" / "energy_uj").write_text("100")
    found = read.stop()
    assert found.energy_j == pytest.approx((50 + 200) / 1e6) and found.throttled == []


def test_heat_is_what_was_counted_since(processor: Path) -> None:
    read = Meters(CPU)
    read.start()
    (processor / "cpu" / "cpu1" / "thermal_throttle" / "core_throttle_count").write_text("5")
    assert read.stop().throttled == ["heat"]
    read.start()
    assert read.stop().throttled == []


def test_nobody_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meters, "PACKAGES", tmp_path)
    monkeypatch.setattr(meters, "CORES", tmp_path)
    read = Meters(CPU)
    read.start()
    assert read.stop() == meters.Reading(None, None)


def test_a_card_s_own_counters(monkeypatch: pytest.MonkeyPatch) -> None:
    class Card:
        millijoules = 5_000

        def nvmlDeviceGetTotalEnergyConsumption(self, _: object, value: ctypes._CFuncPtr) -> int:
            value._obj.value = self.millijoules  # type: ignore[attr-defined]
            return 0

        def nvmlDeviceGetCurrentClocksThrottleReasons(self, _: object, value: ctypes._CFuncPtr) -> int:
            value._obj.value = 0x24  # type: ignore[attr-defined]
            return 0

    card = Card()
    monkeypatch.setattr(meters, "_nvml", lambda: card)
    monkeypatch.setattr(meters, "_handle", lambda *_: None)
    read = Meters(torch.device("cuda", 0))
    read.start()
    card.millijoules = 7_500
    assert read.stop() == meters.Reading(2.5, ["heat", "power cap"])
