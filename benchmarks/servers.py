"""The cost of specbench's client of servers: in llama.cpp's own tokens per second, and in a core's time for many streams at once.

python -m benchmarks.servers [KEY=VALUE …]   # target.shape=100m target.dtype=bfloat16 by default; needs the extra llama_cpp

llama.cpp decodes the same prompts in turns for specbench's client, for a bare socket that reads the same stream now and then, and
for a request that waits for the whole answer; its own rates are compared. Then 64 clients read from a stand-in server in a
process of its own, which pauses between steps; what counts is this process's processor time per second.
"""

import json
import socket
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter, process_time, sleep
from typing import Any

import httpx2
import torch

from benchmarks.embedded import Bench, exit_with, load_bench
from specbench.cli.output import print_lines
from specbench.decoding.sampling import Sampling
from specbench.engine.server import PAUSE
from specbench.exchange.gguf_file import export_gguf
from specbench.records.trial import BASELINE
from specbench.running.clients import run_clients
from specbench.servers.client import Access, Client
from specbench.servers.llama_cpp import LlamaCpp
from specbench.servers.started import StartedServer
from specbench.servers.vllm import Vllm

ROUNDS, TOKENS = 30, 128
STREAMS, STREAM_TOKENS = 64, 200
STEP = 0.05  # seconds between the stand-in's steps
LEAST_RATE = 0.99  # of llama.cpp's own tokens per second for a bare socket
BARE_PAUSE = 0.05  # seconds between its readings
MOST_CORE = 0.30  # of a core
WAIT = 300  # seconds for a start
COMMAND = "{python} -m specbench.servers.wheel -m {model} --port {port} -t {threads} --no-cache-prompt"


def load_prompts(*overrides: str) -> Bench:
    """Return the target and the prompts that are asked for."""
    return load_bench("method=[pld]", "task=[qa]", *overrides, limit=3)


def measure_rates(bench: Bench) -> dict[str, list[float]]:
    """Return llama.cpp's own tokens per second for specbench's client over those for the other ways, by way and round."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        path = Path(folder) / "target.gguf"
        export_gguf(bench.target.model, bench.target.tokenizer, "target", path)
        values = {"python": sys.executable, "model": path, "threads": torch.get_num_threads()}
        server = StartedServer(BASELINE, COMMAND, values, Path(folder) / "log", None)
        stack.callback(server.end)
        server.await_health("/health", WAIT)
        client = Client(BASELINE, server.url, LlamaCpp(), Access(WAIT), PAUSE)
        stack.callback(client.close)
        rounds = [_time_round(client, bench.prompts, number) for number in range(ROUNDS + 1)][1:]  # the first one warms up
    return {way: [seconds[way] / seconds["specbench"] for seconds in rounds] for way in ("bare", "whole")}


def _time_round(client: Client, prompts: list[list[int]], number: int) -> dict[str, float]:
    """Return the seconds that the server decoded for each way, by its own clock."""
    seconds = dict.fromkeys(WAYS, 0.0)
    for place, prompt in enumerate(prompts):
        body = client.protocol.build_request(prompt, Sampling(max_new_tokens=TOKENS), None, None) | {"ignore_eos": True}
        shift = (number + place) % len(WAYS)
        for way in [*WAYS][shift:] + [*WAYS][:shift]:
            seconds[way] += WAYS[way](client, body)
    return seconds


def _ask(client: Client, body: dict[str, Any]) -> float:
    return client.ask(body).answer.decode_s or 0.0


def _ask_bare(client: Client, body: dict[str, Any]) -> float:
    content, (host, _, port) = json.dumps(body).encode(), client.url.removeprefix("http://").partition(":")
    head = f"POST {client.protocol.path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {len(content)}\r\n\r\n"
    said = b""
    with socket.create_connection((host, int(port))) as bare:
        bare.sendall(head.encode() + content)
        while piece := bare.recv(1 << 20):
            said += piece
            sleep(BARE_PAUSE)
    return float(said.rpartition(b'"predicted_ms":')[2].partition(b",")[0]) / 1e3


def _ask_whole(client: Client, body: dict[str, Any]) -> float:
    plain = body | {"stream": False, "timings_per_token": False}
    times = httpx2.post(client.url + client.protocol.path, json=plain, timeout=WAIT, trust_env=False).json()["timings"]
    return float(times["predicted_ms"]) / 1e3


WAYS: dict[str, Callable[[Client, dict[str, Any]], float]] = {"specbench": _ask, "bare": _ask_bare, "whole": _ask_whole}


def measure_streams() -> tuple[float, float]:
    """Return the share of a core that 64 streams take, and their tokens per second."""
    with tempfile.TemporaryDirectory() as folder:
        values = {"python": sys.executable, "step": STEP}
        server = StartedServer("stand-in", "{python} -m tests.stand_in vllm {port} 0 {step}", values, Path(folder) / "log", None)
        try:
            server.await_health("/health", WAIT)
            client = Client("stand-in", server.url, Vllm(), Access(WAIT))
            sampling = Sampling(max_new_tokens=STREAM_TOKENS)
            begun, used = perf_counter(), process_time()
            run_clients(range(STREAMS), STREAMS, lambda one, *_: _stream(client, [one + 2, 3], replace(sampling, seed=one)))
            wall = perf_counter() - begun
            return (process_time() - used) / wall, STREAMS * STREAM_TOKENS / wall
        finally:
            server.end()


def _stream(client: Client, prompt: list[int], sampling: Sampling) -> None:
    answer = client.ask(client.protocol.build_request(prompt, sampling, None, None)).answer
    answer.check(prompt, sampling.max_new_tokens, 1000, ())


def main() -> int:
    overrides = sys.argv[1:] or ["target.shape=100m", "target.dtype=bfloat16"]
    rates = measure_rates(load_prompts(*overrides))
    share, rate = measure_streams()
    for way, said in (("bare", f"a bare socket; expected at least {LEAST_RATE}"), ("whole", "a request without a stream")):
        found = f"{median(rates[way]):.3f} [{min(rates[way]):.3f}, {max(rates[way]):.3f}] in {ROUNDS} rounds"
        print_lines(f"llama.cpp's own tokens/s for specbench's client: {found}, over those for {said}")
    print_lines(f"{STREAMS} streams, {rate:,.0f} tokens/s in all: {share:.1%} of a core; expected at most {MOST_CORE:.0%}")
    return 0 if median(rates["bare"]) >= LEAST_RATE and share <= MOST_CORE else 1


if __name__ == "__main__":
    exit_with(main)
