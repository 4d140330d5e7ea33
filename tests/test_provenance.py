"""What run.json says: enough to find the place again, nothing about the person."""

from __future__ import annotations

import getpass
import json
import platform
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import torch

from specbench import ROOT
from specbench.errors import InputError
from specbench.machine.devices import (
    DTYPES,
    count_usable_cores,
    get_free_memory,
    get_peak_memory,
    get_total_memory,
    has_bf16_units,
    list_devices,
    pick_device,
    pick_dtype,
    reset_peak_memory,
)
from specbench.setup import provenance as module
from specbench.setup.provenance import collect_provenance
from tests.conftest import Driver

CPU = torch.device("cpu")


def test_says_versions_machine_and_time() -> None:
    info = collect_provenance(CPU)
    assert info["versions"]["torch"] == torch.__version__
    assert info["versions"]["python"] == platform.python_version()
    assert info["device"]["kind"] == "cpu" and info["device"]["name"]
    assert info["machine"]["threads"] == torch.get_num_threads()
    assert info["machine"]["cores"] >= 1 and info["machine"]["bf16_units"] == has_bf16_units()
    assert datetime.fromisoformat(info["started"].replace("Z", "+00:00")).utcoffset() == timedelta(0)


def test_names_no_user_host_or_folder() -> None:
    info = collect_provenance(CPU)
    text = json.dumps(info)
    for secret in (str(Path.home()), str(ROOT), str(Path.cwd())):
        assert len(secret) < 4 or secret not in text, f"{secret} is in run.json"
    values = {value for part in info.values() if isinstance(part, dict) for value in map(str, part.values())}
    assert not {getpass.getuser(), platform.node()} & values


def test_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert collect_provenance(CPU)["git"] is None


def test_a_checkout_around_the_project_is_not_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "_run_command", lambda command: str(tmp_path))
    assert module._describe_git() is None


def test_a_card_s_driver_clocks_and_limits(driver: Driver) -> None:
    driver.answers |= {
        "nvmlSystemGetDriverVersion": "550.1",
        "nvmlDeviceGetClockInfo": lambda card, kind: {("the card", 1): 345, ("the card", 2): 2619}[card, kind],
        "nvmlDeviceGetMaxClockInfo": lambda card, kind: {("the card", 1): 1980, ("the card", 2): 3201}[card, kind],
        "nvmlDeviceGetPowerManagementLimit": 650_500,
        "nvmlDeviceGetPowerManagementLimitConstraints": [200_000, 700_000],
        "nvmlDeviceGetPersistenceMode": 1,
        "nvmlDeviceGetMigMode": [0, 1],
    }
    info = module._query_nvidia(torch.device("cuda", 0))
    assert json.loads(json.dumps(info)) == {
        "driver": "550.1",
        "clocks": {
            "clocks.sm": 345,
            "clocks.mem": 2619,
            "clocks.max.sm": 1980,
            "clocks.max.mem": 3201,
            "clocks.applications.graphics": None,
            "power.limit": 650.5,
            "power.max_limit": 700.0,
            "persistence_mode": "Enabled",
            "mig.mode.current": "Disabled",
        },
    }


def test_a_card_without_nvidia_s_driver(driver: Driver) -> None:
    driver.answers.clear()
    assert module._query_nvidia(torch.device("cuda", 0)) == {}


def test_peak_memory_is_that_of_a_process() -> None:
    reset_peak_memory(CPU)
    assert 10_000_000 < (get_peak_memory(CPU) or 0) < 1_000_000_000_000


def test_cores_are_those_that_this_process_may_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.cpu_count", lambda: 8)
    monkeypatch.setattr("psutil.Process.cpu_affinity", lambda process: [3, 5], raising=False)
    assert count_usable_cores() == 2
    monkeypatch.delattr("psutil.Process.cpu_affinity")  # macOS
    assert count_usable_cores() == 8


def test_free_memory_is_a_part_of_the_machine_s() -> None:
    assert 0 < get_free_memory(CPU) < get_total_memory()


def test_auto_takes_what_is_there() -> None:
    assert pick_device("auto").type == list_devices()[0]
    assert pick_device("cpu") == CPU
    assert pick_dtype("auto", CPU) == (torch.bfloat16 if has_bf16_units() else torch.float32)
    assert {pick_dtype(name, CPU) for name in DTYPES} == set(DTYPES.values())


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_f": True, "avx512_vnni": True, "amx_bf16": False, "avx512_bf16": False}, torch.float32),
        ({"avx512_f": True, "avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"neon": True, "bf16": True}, torch.bfloat16),
        ({"neon": True}, torch.float32),
    ],
)
def test_bfloat16_on_a_cpu_only_in_hardware(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], expected: torch.dtype
) -> None:
    monkeypatch.setattr("specbench.machine.devices.get_cpu_capabilities", lambda: capabilities)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert pick_dtype("auto", CPU) == expected


def test_mistakes_are_told_what_is_there() -> None:
    with pytest.raises(InputError, match=r"device=cuda:99: .*auto.* cpu"):
        pick_device("cuda:99")
    with pytest.raises(InputError, match=r"dtype=float23: on cpu expected float32"):
        pick_dtype("float23", CPU)
    with pytest.raises(InputError, match="on mps expected"):
        pick_dtype("float64", torch.device("mps"))
