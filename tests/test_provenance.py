"""What run.json says: enough to find the place again, nothing about the person."""

import getpass
import json
import platform
import shutil
import sys
from datetime import datetime
from pathlib import Path

import pytest
import torch

from specbench import provenance as module
from specbench.devices import (
    DTYPES,
    devices,
    free_memory_bytes,
    has_bf16_units,
    memory_bytes,
    peak_memory_bytes,
    pick_device,
    pick_dtype,
    reset_peak_memory,
    usable_cores,
)
from specbench.errors import InputError
from specbench.provenance import fingerprint, provenance

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


def test_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert provenance(CPU)["git"] is None


def test_a_checkout_around_the_project_is_not_its_own(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_output", lambda command: str(tmp_path))
    assert module._git() is None


def test_a_card_s_driver_clocks_and_limits(driver):
    driver.answers |= {
        "nvmlSystemGetDriverVersion": "550.1",
        "nvmlDeviceGetClockInfo": lambda card, kind: {("the card", 1): 345, ("the card", 2): 2619}[card, kind],
        "nvmlDeviceGetMaxClockInfo": lambda card, kind: {("the card", 1): 1980, ("the card", 2): 3201}[card, kind],
        "nvmlDeviceGetPowerManagementLimit": 650_500,
        "nvmlDeviceGetPowerManagementLimitConstraints": [200_000, 700_000],
        "nvmlDeviceGetPersistenceMode": 1,
        "nvmlDeviceGetMigMode": [0, 1],
    }
    said = module._nvidia(torch.device("cuda", 0))
    assert json.loads(json.dumps(said)) == {
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


def test_a_card_without_nvidia_s_driver(driver):
    driver.answers.clear()
    assert module._nvidia(torch.device("cuda", 0)) == {}


def test_fingerprint_follows_names_and_contents_alone(tmp_path):
    def folder(name: str, **files: str) -> Path:
        (tmp_path / name).mkdir()
        for file, content in files.items():
            (tmp_path / name / file.replace("_", ".")).write_text(content)
        return tmp_path / name

    one = fingerprint(folder("one", config_json="{}", model_safetensors="weights"))
    assert one == fingerprint(folder("two", model_safetensors="weights", config_json="{}", notes_md="read me"))
    assert one != fingerprint(folder("three", config_json="{}", model_safetensors="others"))
    assert one != fingerprint(folder("four", settings_json="{}", model_safetensors="weights"))


def test_fingerprint_of_a_hub_snapshot_is_that_of_its_contents(tmp_path):
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "model.safetensors").write_bytes(b"weights")
    blob = tmp_path / "blobs" / module._content_sha256(tmp_path / "plain" / "model.safetensors")
    blob.parent.mkdir()
    blob.write_bytes(b"weights")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "model.safetensors").symlink_to(blob)
    assert fingerprint(tmp_path / "snapshot") == fingerprint(tmp_path / "plain")


def test_a_methods_code_is_that_of_its_classes_and_of_what_they_import(tmp_path, monkeypatch):
    eagle, pld = {"_target_": "methods.eagle.Eagle"}, {"_target_": "methods.pld.PromptLookup"}
    both = {"_target_": "methods.fallback.Fallback", "first": pld, "then": {"deeper": eagle}}
    assert len({module.method_code(one) for one in (eagle, pld, both, both | {"then": pld})}) == 4
    package = tmp_path / "outside"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "words.py").write_text("WORDS = [1]\n")
    (package / "method.py").write_text("from methods.pld import PromptLookup\nfrom .words import WORDS\nimport torch\n")
    (package / "method.py").open("a").write("class Mine(PromptLookup):\n    pass\n")

    def code() -> str:
        for name in [name for name in sys.modules if name.startswith("outside")]:
            del sys.modules[name]
        shutil.rmtree(package / "__pycache__", ignore_errors=True)
        return module.method_code({"_target_": "outside.method.Mine"})

    monkeypatch.syspath_prepend(tmp_path)
    first = code()
    assert first == code() != module.method_code(pld)
    (package / "another.py").write_text("a new file that nothing imports")
    assert first == code()
    (package / "words.py").write_text("WORDS = [2]\n")
    assert first != code()


def test_nothing_there_has_no_fingerprint(tmp_path):
    assert fingerprint(tmp_path / "nothing") is None
    assert fingerprint("nobody/has-this-model") is None


def test_peak_memory_is_that_of_a_process():
    reset_peak_memory(CPU)
    assert 10_000_000 < peak_memory_bytes(CPU) < 1_000_000_000_000


def test_cores_are_those_that_this_process_may_run_on(monkeypatch):
    monkeypatch.setattr("psutil.cpu_count", lambda: 8)
    monkeypatch.setattr("psutil.Process.cpu_affinity", lambda process: [3, 5], raising=False)
    assert usable_cores() == 2
    monkeypatch.delattr("psutil.Process.cpu_affinity")  # macOS
    assert usable_cores() == 8


def test_free_memory_is_a_part_of_the_machine_s():
    assert 0 < free_memory_bytes(CPU) < memory_bytes()


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
    monkeypatch.setattr("specbench.devices.cpu_capabilities", lambda: there)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert pick_dtype("auto", CPU) == expected


def test_mistakes_are_told_what_is_there():
    with pytest.raises(InputError, match=r"device=cuda:99: .*auto.* cpu"):
        pick_device("cuda:99")
    with pytest.raises(InputError, match=r"dtype=float23: on cpu expected float32"):
        pick_dtype("float23", CPU)
    with pytest.raises(InputError, match="on mps expected"):
        pick_dtype("float64", torch.device("mps"))
