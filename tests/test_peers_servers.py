"""Servers of llama.cpp: their options, their end on every way out, and what they say if they do not start."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from benchmarks.peers.arms import Job
from benchmarks.peers.llama_cpp import Client, ServerSettings, describe_build, open_llama_cpp
from specbench import ROOT
from specbench.decoding.language_model import LanguageModel
from specbench.errors import InputError
from specbench.servers.started import StartedServer
from tests.test_peers import build_job
from tests.tiny import tiny_language_model

STAND_IN = """#!{python}
import json, os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.reply(dict(status="ok"))
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        times = dict(cache_n=0, prompt_n=len(asked["prompt"]), predicted_n=2, predicted_ms=4.0, draft_n=os.getpid())
        self.reply(dict(tokens=asked["prompt"][-2:], timings=times))
    def reply(self, body):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

print("system_info: CPU : AVX512 = 1 | AVX512_BF16 = 1 |", sys.argv[1:], flush=True)
HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """A program that answers like llama-server; it says its process's number as `draft_n`."""
    path = tmp_path / "llama-server"
    path.write_text(STAND_IN.format(python=sys.executable))
    path.chmod(0o755)
    return path


def await_end(pids: Collection[int]) -> bool:
    return not psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=20)[1]


@pytest.mark.full
def test_a_binary_gets_a_server_per_method_and_ends_with_the_stack(
    stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Job, "export", lambda job: tmp_path / "target.gguf")
    model = LanguageModel(tiny_language_model().model.float())  # type: ignore[no-untyped-call]
    job = replace(build_job(model, tmp_path, "autoregressive", "pld"), llama_binary=str(stand_in))
    with ExitStack() as stack:
        arms = list(open_llama_cpp(job, stack))
        answers = [arm.decode(job.prompts[0]) for arm in arms]
        assert all(len(arm.processes) == 2 and out.drafted in arm.processes for arm, out in zip(arms, answers, strict=True))
        assert [(out.ids, out.tokens, out.seconds) for out in answers] == [([59, 3], 1, 0.004)] * 2
    assert await_end(arms[0].processes | arms[1].processes)
    assert job.notes == ["llama.cpp is llama-server, which uses AVX512, AVX512_BF16"]
    plain, lookup = ((tmp_path / f"llama.cpp-{method}.log").read_text() for method in ("autoregressive", "pld"))
    assert "'-np', '1', '-t'" in plain and "'-ctk', 'f32'" in plain and "--spec-" not in plain
    assert "'ngram-simple', '--spec-ngram-simple-size-n', '3', '--spec-ngram-simple-size-m', '10'" in lookup


@pytest.mark.full
@pytest.mark.parametrize("victim", [0, 1])
def test_a_server_ends_with_what_starts_it(victim: int, stand_in: Path, tmp_path: Path) -> None:
    settings = ServerSettings("target.gguf", 512, 1, False, ("draft.gguf", 8), binary=str(stand_in))
    server = StartedServer("sps", settings.command, {}, tmp_path / "log", None)
    server.await_health("/health", 20)
    pids = sorted(server.list_processes())
    assert len(pids) == 2
    psutil.Process(pids[victim]).kill()
    server.end()
    assert await_end(pids)
    assert "'draft-simple', '-md', 'draft.gguf', '--spec-draft-n-max', '8'" in server.read_log()


def test_a_server_loads_no_torch() -> None:
    code = "import sys, specbench.servers.wheel; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout == "False\n"


def test_a_server_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="llama.cpp at 127.0.0.1:9: ConnectionRefusedError"):
        Client("127.0.0.1:9", build_job(tiny_language_model(), tmp_path)).decode([2, 3])


def test_a_build_is_described_from_the_log() -> None:
    log = "info: build 1 (0c1e) with GNU 12\nx: n_threads = 2 | CPU : SSE3 = 1 | AVX2 = 1 | AVX512 = 0 | \nA = 1 |"
    assert describe_build(log) == ", build 1 (0c1e) with GNU 12, which uses SSE3, AVX2"
    assert describe_build("CPU : SSE3 = 1 |\n") == ", which uses SSE3"
    assert describe_build("loading") == ""
