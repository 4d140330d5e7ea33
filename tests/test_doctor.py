"""The doctor always answers, and says what must be fixed."""

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from specbench.diagnose import doctor
from specbench.diagnose.doctor import Check, build_checks_table, check_weights, run_checks


@pytest.fixture(autouse=True)
def quick_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "measure_read_bandwidth", lambda size, repeats: 1e9)


def render(checks: list[Check]) -> str:
    page = io.StringIO()
    Console(file=page, width=200).print(build_checks_table(checks))
    return page.getvalue()


def test_answers_everything() -> None:
    checks = {check.name: check for check in run_checks()}
    assert {
        "Python",
        "torch",
        "device",
        "dtype",
        "threads",
        "C++ compiler",
        "memory bandwidth",
        "embedded target",
        "embedded draft",
    } <= checks.keys()
    assert checks["Python"].ok and checks["device"].ok and checks["memory bandwidth"].detail.startswith("1 GB/s")
    assert all(check.detail for check in checks.values())


def test_marks_and_brackets_are_shown_as_they_are() -> None:
    text = render([Check("a", True, "fine"), Check("b", False, "broken [red]"), Check("c", None, "so so")])
    assert all(word in text for word in ("ok", "FAIL", "broken [red]", "note"))


def test_packages_against_their_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    requirements = ["torch>=1", "rich<1", "no-such-package>=3", "pytest; extra == 'dev'"]
    monkeypatch.setattr(doctor, "requires", lambda name: requirements)
    checks = {check.name: check.ok for check in doctor._check_packages()}
    assert checks == {"torch": True, "rich": False, "no-such-package": False}


def test_more_threads_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "count_usable_cores", lambda: 0)
    assert doctor._check_threads().ok is False


def test_weights_complete_missing_and_truncated(tmp_path: Path) -> None:
    whole, pointer, truncated = (tmp_path / f"{name}.safetensors" for name in ("whole", "pointer", "truncated"))
    save_file({"a": torch.zeros(100), "b": torch.zeros(3)}, whole)
    pointer.write_text("version https://git-lfs.github.com/spec/v1\n")
    truncated.write_bytes(whole.read_bytes()[:-8])
    assert check_weights("w", whole) == Check("w", True, f"2 tensors, {whole.stat().st_size / 1e6:.3g} MB")
    assert check_weights("w", pointer).ok is False and check_weights("w", truncated).ok is False
    assert "missing" in check_weights("w", tmp_path / "none.safetensors").detail
