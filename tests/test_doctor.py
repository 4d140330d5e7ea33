"""The doctor: it always answers, and says what must be mended."""

import io

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from specbench.diagnose import doctor
from specbench.diagnose.doctor import Check, build_checks_table, check_weights, run_checks


@pytest.fixture(autouse=True)
def quick_copy(monkeypatch):
    monkeypatch.setattr(doctor, "measure_copy_bandwidth", lambda device, size, repeats: 1e9)


def shown(found: list[Check]) -> str:
    page = io.StringIO()
    Console(file=page, width=200).print(build_checks_table(found))
    return page.getvalue()


def test_answers_everything():
    found = {check.name: check for check in run_checks()}
    assert {
        "Python",
        "torch",
        "device",
        "dtype",
        "threads",
        "copy bandwidth",
        "embedded target",
        "embedded draft",
    } <= found.keys()
    assert found["Python"].ok and found["device"].ok and found["copy bandwidth"].detail.startswith("1 GB/s")
    assert all(check.detail for check in found.values())


def test_marks_and_brackets_are_shown_as_they_are():
    text = shown([Check("a", True, "fine"), Check("b", False, "broken [red]"), Check("c", None, "so so")])
    assert all(word in text for word in ("ok", "FAIL", "broken [red]", "note"))


def test_packages_against_their_ranges(monkeypatch):
    asked = ["torch>=1", "rich<1", "no-such-package>=3", "pytest; extra == 'dev'"]
    monkeypatch.setattr(doctor, "requires", lambda name: asked)
    found = {check.name: check.ok for check in doctor._check_packages()}
    assert found == {"torch": True, "rich": False, "no-such-package": False}


def test_more_threads_than_cores(monkeypatch):
    monkeypatch.setattr(doctor, "count_usable_cores", lambda: 0)
    assert doctor._check_threads().ok is False


def test_weights_there_missing_and_torn(tmp_path):
    whole, pointer, torn = (tmp_path / f"{name}.safetensors" for name in ("whole", "pointer", "torn"))
    save_file({"a": torch.zeros(100), "b": torch.zeros(3)}, whole)
    pointer.write_text("version https://git-lfs.github.com/spec/v1\n")
    torn.write_bytes(whole.read_bytes()[:-8])
    assert check_weights("w", whole) == Check("w", True, f"2 tensors, {whole.stat().st_size / 1e6:.3g} MB")
    assert check_weights("w", pointer).ok is False and check_weights("w", torn).ok is False
    assert "missing" in check_weights("w", tmp_path / "none.safetensors").detail
