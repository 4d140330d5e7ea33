"""The arms of llama.cpp: one HTTP server per method, each in its own process; prompts and answers are token ids.

A request cannot choose how to speculate, so each method has its own server. The server times itself: `predicted_ms` runs from the
first token on.
"""

import json
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from benchmarks.peers.arms import CONTINUATION, DRAFT_TOKENS, NGRAM, Answer, Arm, Job
from specbench.errors import InputError, format_error
from specbench.records.trial import BASELINE
from specbench.servers.started import StartedServer

PATIENCE = 600  # seconds for one answer, and for a start
WHEEL = f"{sys.executable} -m specbench.servers.wheel"


@dataclass(frozen=True)
class ServerSettings:
    """A server with one slot that remembers no prompt. binary: a `llama-server`; None: the wheel's.

    draft: the file of a draft model and the tokens of a draft. ngram: how many tokens are looked up, and how many copied at most.
    float32: keys and values are float32 too, and flash attention is off, which computes in float16 whatever they are: logits are
    then 0.01 off instead of 0.00001. Otherwise both are llama.cpp's defaults: float16, on.
    """

    model: str
    context: int
    threads: int
    float32: bool
    draft: tuple[str, int] | None = None
    ngram: tuple[int, int] | None = None
    binary: str | None = None

    @property
    def command(self) -> str:
        """The command line, with {port} where its port goes."""
        program = shlex.quote(self.binary) + " -fit off --device none -lv 4" if self.binary else WHEEL
        own = f"-c {self.context} -np 1 -t {self.threads} --no-cache-prompt --cache-ram 0 --host 127.0.0.1"
        return f"{program} {shlex.join(['-m', self.model, *own.split(), *self._list_choices()])} --port {{port}}"

    def _list_choices(self) -> list[str]:
        options = "-fa off -ctk f32 -ctv f32 -ctkd f32 -ctvd f32".split() if self.float32 else []
        if self.draft:
            path, tokens = self.draft
            options += ["--spec-type", "draft-simple", "-md", path]
            options += f"--spec-draft-n-max {tokens} --spec-draft-n-min 0 --spec-draft-p-min 0".split()
        if self.ngram:
            length, tokens = self.ngram
            options += f"--spec-type ngram-simple --spec-ngram-simple-size-n {length} --spec-ngram-simple-size-m {tokens}".split()
        return options


def open_llama_cpp(job: Job, stack: ExitStack) -> Iterator[Arm]:
    """Yield the arms of llama.cpp: of the binary that the job names, else of the wheel."""
    for method in job.methods:
        server = StartedServer(f"llama.cpp-{method}", choose_settings(job, method).command, {}, _name_log(job, method), None)
        stack.callback(server.end)
        server.await_health("/health", PATIENCE)
        if method == job.methods[0]:
            name = Path(job.llama_binary).name if job.llama_binary else "the wheel's"
            job.notes.append(f"llama.cpp is {name}{describe_build(server.read_log())}")
        decode = Client(server.url.removeprefix("http://"), job).decode
        yield Arm("llama.cpp", method, decode, worker="others", processes=server.list_processes())


def _name_log(job: Job, method: str) -> Path:
    return job.logs / f"llama.cpp-{method}.log"


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
            raise InputError(f"llama.cpp returned no answer: {json.dumps(reply)[:400]}")
        return reply
