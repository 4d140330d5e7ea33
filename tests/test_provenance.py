"""What run.json says: enough to find the place again, nothing about the person."""

import getpass
import json
import platform
from datetime import datetime
from pathlib import Path

import pytest
import torch

from specbench.errors import InputError
from specbench.machine.devices import (
    DTYPES,
    devices,
    has_bf16_units,
    peak_memory_bytes,
    pick_device,
    pick_dtype,
    reset_peak_memory,
)
from specbench.setup import provenance as module
from specbench.setup.provenance import provenance

CPU = torch.device("cpu")


def test_says_versions_machine_and_time():
    said = provenance(CPU)
    assert said["versions"]["torch"] == torch.__version__
    assert said["versions"]["python"] == platform.python_version()
    assert said["device"]["kind"] == "cpu" and said["device"]["name"]
    assert said["machine"]["threads"] == torch.get_num_threads()
    assert said["machine"]["cores"] >= 1 and said["machine"]["bf16_units"] == has_bf16_units()
    assert datetime.fromisoformat(said["started"].replace("Z", "+00:00")).utcoffset().total_seconds() == 0


def test_names_no_user_host_or_folder():
    said = provenance(CPU)
    text = json.dumps(said)
    for secret in (str(Path.home()), str(module.ROOT), str(Path.cwd())):
        assert len(secret) < 4 or secret not in text, f"{secret} is in run.json"
    values = {value for part in said.values() if isinstance(part, dict) for value in map(str, part.values())}
    assert not {getpass.getuser(), platform.node()} & values


def test_without_git_or_nvidia_smi(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert provenance(CPU)["git"] is None
    assert module._nvidia("0") == {}


def test_a_checkout_around_the_project_is_not_its_own(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_output", lambda command: str(tmp_path))
    assert module._git() is None


def test_nvidia_smi_is_read(monkeypatch):
    line = ", ".join(["550.1", "1980 MHz", *["x"] * (len(module.CLOCKS) - 1)])
    monkeypatch.setattr(module, "_output", lambda command: line)
    assert module._nvidia("0")["driver"] == "550.1"
    assert module._nvidia("0")["clocks"]["clocks.sm"] == "1980 MHz"


def test_peak_memory_is_that_of_a_process():
    reset_peak_memory(CPU)
    assert 10_000_000 < peak_memory_bytes(CPU) < 1_000_000_000_000


def test_auto_takes_what_is_there():
    assert pick_device("auto").type == devices()[0]
    assert pick_device("cpu") == CPU
    assert pick_dtype("auto", CPU) == (torch.bfloat16 if has_bf16_units() else torch.float32)
    assert {pick_dtype(name, CPU) for name in DTYPES} == set(DTYPES.values())


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        ({"avx512_f": True, "avx512_vnni": True, "amx_bf16": False, "avx512_bf16": False}, torch.float32),
        ({"avx512_f": True, "avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"neon": True, "bf16": True}, torch.bfloat16),
        ({"neon": True}, torch.float32),
    ],
)
def test_bfloat16_on_a_cpu_only_in_hardware(monkeypatch, there, expected):
    monkeypatch.setattr("specbench.machine.devices.cpu_capabilities", lambda: there)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert pick_dtype("auto", CPU) == expected


def test_mistakes_are_told_what_is_there():
    with pytest.raises(InputError, match=r"device=cuda:99: .*auto.* cpu"):
        pick_device("cuda:99")
    with pytest.raises(InputError, match=r"dtype=float23: on cpu expected float32"):
        pick_dtype("float23", CPU)
    with pytest.raises(InputError, match="on mps expected"):
        pick_dtype("float64", torch.device("mps"))
