"""The examples and the blocks of docs/python.md run, from a folder of their own; and the checkout is found from anywhere."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient

from specbench import ROOT

pytestmark = pytest.mark.full
EXAMPLES = ROOT / "examples"
NOTEBOOK = EXAMPLES / "compare_methods.ipynb"


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in {"TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)  # of the notebook's kernel: locks, checkout and threads of this test alone


def test_the_script_prints_numbers_and_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["first_numbers.py", "mine"])
    runpy.run_path(str(EXAMPLES / "first_numbers.py"), run_name="__main__")
    out = capsys.readouterr().out
    assert out.count("same text: True") == 3 and "page: mine/report/index.html" in out
    assert (tmp_path / "mine" / "report" / "index.html").is_file()


def test_the_notebook_runs_and_is_stored_without_outputs(tmp_path: Path) -> None:
    notebook = nbformat.reads(NOTEBOOK.read_text(encoding="utf-8"), as_version=4)  # type: ignore[no-untyped-call]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert len(list(tmp_path.glob("reports/*/index.html"))) == 1
    assert all(output.output_type != "error" for cell in code for output in cell.outputs)
    assert "torch" not in json.dumps(code[0].outputs), "the first cell shows the target alone"


def test_the_blocks_of_the_page_run_one_after_the_other() -> None:
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    names: dict[str, object] = {}
    for block in re.findall(r"^```py\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        exec(compile(block, "python.md", "exec"), names)
    assert Path("reports/first/index.html").is_file()
    assert torch.get_num_threads() > 0


def test_an_editable_install_puts_the_checkout_on_the_path(tmp_path: Path) -> None:
    """Setuptools' finder of single packages comes after a folder `specbench` in the working folder, such as the clone itself."""
    clone = tmp_path / "specbench"
    for name in ("specbench", "methods", "tasks"):
        (clone / name).mkdir(parents=True)
        (clone / name / "__init__.py").touch()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (clone / name).write_bytes((ROOT / name).read_bytes())
    build = f"from setuptools import build_meta; print(build_meta.build_editable({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", build], cwd=clone, capture_output=True, text=True, check=True)
    with zipfile.ZipFile(tmp_path / done.stdout.split()[-1]) as wheel:
        (path,) = (name for name in wheel.namelist() if name.endswith(".pth"))
        assert wheel.read(path).decode().strip() == str(clone)
        assert not any("finder" in name for name in wheel.namelist())
