"""Energy and throttling are read where the machine counts them, and absent elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from specbench.machine import energy as meters
from specbench.machine import nvml
from specbench.machine.energy import Meters
from tests.conftest import Driver

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


def read_between(driver: Driver, later: dict[str, object]) -> meters.Reading:
    """What a card's meters read when its driver answers as it does now, and at the end what is in `later` too."""
    read = Meters(torch.device("cuda", 0))
    read.start()
    driver.answers |= later
    return read.stop()


def test_a_card_s_own_counters(driver: Driver) -> None:
    driver.answers |= {
        "nvmlDeviceGetTotalEnergyConsumption": {"the card": 5_000}.get,
        "nvmlDeviceGetCurrentClocksThrottleReasons": {"the card": 0x24}.get,
    }
    found = read_between(driver, {"nvmlDeviceGetTotalEnergyConsumption": 7_500})
    assert found == meters.Reading(2.5, ["heat", "power cap"])


def test_a_card_that_counts_nothing_or_only_later(driver: Driver) -> None:
    assert read_between(driver, {}) == meters.Reading(None, None)
    assert read_between(driver, {"nvmlDeviceGetTotalEnergyConsumption": 7_500}).energy_j is None


def test_a_card_without_a_uuid_goes_by_its_index(driver: Driver) -> None:
    del driver.answers["nvmlDeviceGetHandleByUUID"]
    driver.answers["nvmlDeviceGetHandleByIndex"] = {3: "the fourth"}.get
    assert nvml.find_gpu(torch.device("cuda", 3)) == "the fourth"


@pytest.mark.parametrize("fault", ["no package", "no driver", "an old package"])
def test_no_driver_is_no_error(driver: Driver, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    driver.answers |= {"nvmlDeviceGetTotalEnergyConsumption": 5_000, "nvmlDeviceGetCurrentClocksThrottleReasons": 0}
    if fault == "no package":
        monkeypatch.setitem(sys.modules, "pynvml", None)
    elif fault == "no driver":
        del driver.answers["nvmlInit"]
    else:
        monkeypatch.setattr(Driver, "__getattr__", lambda driver, question: driver.__getattribute__(question))
        monkeypatch.setattr(driver, "nvmlInit", lambda: None, raising=False)
    assert read_between(driver, {}) == meters.Reading(None, None)
