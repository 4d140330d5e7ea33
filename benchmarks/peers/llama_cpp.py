"""The arms of llama.cpp: one HTTP server per method, each in a process of its own; prompts and answers are token ids.

A request cannot choose how to speculate, so each method has its own server. The server times itself: `predicted_ms` runs from the
first token on.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from select import select
from time import monotonic, sleep
from typing import Any

import psutil

from benchmarks.peers.arms import CONTINUATION, DRAFT_TOKENS, NGRAM, Answer, Arm, Job
from benchmarks.peers.serve import ServerSettings
from specbench import ROOT
from specbench.errors import InputError, format_error
from specbench.records.trial import BASELINE

PATIENCE = 600  # seconds for one answer, and for a start
GRACE = 10  # seconds for an end


def open_llama_cpp(job: Job, stack: ExitStack) -> Iterator[Arm]:
    """Yield the arms of llama.cpp: of the binary that the job names, else of the wheel."""
    for method in job.methods:
        server = Server(choose_settings(job, method), job.logs / f"llama.cpp-{method}.log")
        stack.callback(server.end)
        server.await_health()
        if method == job.methods[0]:
            name = Path(job.llama_binary).name if job.llama_binary else "the wheel's"
            job.notes.append(f"llama.cpp is {name}{describe_build(server.read_log())}")
        yield Arm("llama.cpp", method, Client(server.place, job).decode, worker="others", processes=server.list_processes())


def choose_settings(job: Job, method: str) -> ServerSettings:
    return ServerSettings(
        model=str(job.export()),
        context=-(-job.room // 256) * 256,
        threads=job.threads,
        float32=job.target.model.dtype_name == "float32",
        draft=(str(job.export(draft=True)), DRAFT_TOKENS) if method == "sps" else None,
        ngram=(NGRAM, CONTINUATION) if method not in ("sps", BASELINE) else None,
        binary=job.llama_binary,
    )


def describe_build(log: str) -> str:
    """Return what a log says: a line with `build 1 (0c1e57098) with GNU 12.2.0`, and one like `CPU : AVX = 1 | AVX2 = 0`."""
    build = re.search(r"\bbuild \d+ \(.*", log)
    found = re.search(r"\bCPU : (.*)", log)
    parts = (part.split("=") for part in (found[1] if found else "").split("|") if "=" in part)
    instructions = ", ".join(name.strip() for name, value in parts if value.strip() == "1")
    return (f", {build[0]}" if build else "") + (f", which uses {instructions}" if instructions else "")


class Server:
    """A process with one server, which ends with this one. log: where it prints."""

    def __init__(self, settings: ServerSettings, log: Path) -> None:
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "benchmarks.peers.serve", json.dumps(asdict(settings))]
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, start_new_session=True
            )  # a session of its own, without the terminal's Ctrl-C
        self.place = ""

    def await_health(self) -> None:
        """Wait until the server answers. Raises InputError if it ends before."""
        assert self._process.stdout
        deadline = monotonic() + PATIENCE
        if select([self._process.stdout], [], [], PATIENCE)[0]:
            self.place = self._process.stdout.readline().decode().strip().removeprefix("http://")
        while self.place and self._process.poll() is None and monotonic() < deadline:
            if _is_healthy(self.place):
                return
            sleep(0.05)
        raise InputError(f"llama.cpp did not start; {self._log} ends: {self.read_log()[-300:]}")

    def read_log(self) -> str:
        return self._log.read_text(errors="replace")

    def list_processes(self) -> frozenset[int]:
        """Return the numbers of all processes that serve."""
        process = psutil.Process(self._process.pid)
        return frozenset(one.pid for one in (process, *process.children(recursive=True)))

    def end(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()  # it waits for this
        try:
            self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def _is_healthy(place: str) -> bool:
    connection = HTTPConnection(place, timeout=GRACE)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


class Client:
    """Asks one server, one prompt after another."""

    def __init__(self, place: str, job: Job) -> None:
        self.place = place
        self._sampling = job.sampling

    def decode(self, prompt: list[int]) -> Answer:
        """Return the greedy answer and the server's own times. Raises InputError for a reply that cannot be compared."""
        reply = self._post(
            {
                "prompt": prompt,
                "n_predict": self._sampling.max_new_tokens,
                "temperature": 0,
                "samplers": ["temperature"],
                "return_tokens": True,
                "cache_prompt": False,
            }
        )
        ids, times = reply["tokens"], reply["timings"]
        if times["cache_n"] or times["prompt_n"] != len(prompt) or times["predicted_n"] != len(ids):
            raise InputError(f"llama.cpp: a prompt of {len(prompt)} and an answer of {len(ids)} tokens: it counts {times}")
        return Answer(ids, len(ids) - 1, times["predicted_ms"] / 1e3, times.get("draft_n", 0))

    def _post(self, body: dict[str, Any]) -> dict[str, Any]:
        connection = HTTPConnection(self.place, timeout=PATIENCE)
        try:
            connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
            reply: dict[str, Any] = json.loads(connection.getresponse().read())
        except (OSError, HTTPException, ValueError) as error:
            raise InputError(f"llama.cpp at {self.place}: {format_error(error)}") from None
        finally:
            connection.close()
        if "tokens" not in reply:
            raise InputError(f"llama.cpp: no answer but {json.dumps(reply)[:400]}")
        return reply
