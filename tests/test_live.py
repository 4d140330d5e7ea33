"""`specbench report RUN --serve`: the page of a run in progress loads itself again, and the server ends with the run."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from specbench import ROOT
from specbench.records.run_directory import RunDirectory
from tests.browser import Visit
from tests.conftest import Refuse
from tests.fake_run import CONFIG, made_up_trials, write_run

pytest_plugins = ["tests.browser"]
pytestmark = pytest.mark.full

TRIALS = made_up_trials({"pld": 0.5}, ["qa"], questions=4)
SERVER = """
import sys
from specbench.cli import main, serve
serve.SECONDS = 1
sys.argv = ["specbench", "report", sys.argv[1], "--out", sys.argv[2], "--serve", "0"]
main.main()
"""


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run that has measured half of its turns."""
    run = write_run(tmp_path / "run", TRIALS[:8], turns=4)
    run.write_config(CONFIG | {"repeats": 2, "method": {"autoregressive": {}, "pld": {}}})
    return run


@pytest.fixture
def server(run: RunDirectory, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", SERVER, str(run.path), str(tmp_path / "out")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def read_address(server: subprocess.Popen[str]) -> str:
    assert server.stderr is not None
    found = re.search(r"http://127\.0\.0\.1:\d+/", server.stderr.readline())
    assert found
    return found[0]


def test_a_page_follows_its_run(server: subprocess.Popen[str], run: RunDirectory, visit: Visit) -> None:
    page = visit(read_address(server))
    text = page.locator(".progress")
    assert text.inner_text().startswith("The run is going on: 8 of 16 turns are measured.")
    assert page.locator("tbody tr").count() > 2 and page.locator(".panel").is_visible()
    run.append_trials(*TRIALS[8:12])
    text.filter(has_text="12 of 16").wait_for()
    run.append_trials(*TRIALS[12:])
    run.write_summary("done\n")
    text.filter(has_text="The run is finished: 16 turns.").wait_for()
    assert page.locator("meta[http-equiv]").count() == 0
    out, _ = server.communicate(timeout=60)
    assert server.returncode == 0 and "page: " in out, "the report follows"


def test_only_the_page_is_served(server: subprocess.Popen[str]) -> None:
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{read_address(server)}trials.jsonl")


def test_a_run_without_a_number_says_so(server: subprocess.Popen[str], run: RunDirectory, visit: Visit) -> None:
    (run.path / "trials.jsonl").unlink()
    page = visit(read_address(server))
    assert "holds no trial yet" in page.locator(".progress").inner_text()
    run.append_trials(*TRIALS[:8])
    page.get_by_text("8 of 16 turns").wait_for()


def test_a_port_in_use_is_refused(refuse: Refuse, run: RunDirectory) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        line = refuse("report", str(run.path), "--serve", str(port))
    assert line.startswith(f"--serve {port}: ") and line.endswith("in use; choose another port")
    assert "choose another port" in refuse("report", str(run.path), "--serve", "99999")
    assert "there is no folder no_run" in refuse("report", "no_run", "--serve")
