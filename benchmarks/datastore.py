"""Datastores of 100 million tokens: time and memory to build one; time per retrieval with its draft tree; memory while serving.

    python -m benchmarks.datastore [--tokens N] [--vocabulary V]

Tokens follow Zipf's law, and phrases of 10 to 200 tokens are repeated, so that long matches exist. Building and serving run in
separate processes; the last line that each prints is its result as JSON.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
import psutil
from numpy.typing import NDArray

TOKENS = 100_000_000
VOCABULARIES = {16: 32_000, 32: 128_000}  # by bits of an id
DOCUMENT, PART = 1_000, 1_000_000  # tokens per document, and generated at once
EXPONENT, PHRASES = 1.2, 500  # of Zipf's law; repeated phrases in each part
QUERIES, WARM, LONGEST = 4_000, 200, 24
SEED = 3
Figures = TypeVar("Figures")


@dataclass(frozen=True)
class Built:
    """Seconds, and the process's peak memory in bytes."""

    seconds: float
    peak: int


@dataclass(frozen=True)
class Served:
    """Milliseconds per retrieval with draft tree; grown: anonymous memory in bytes since before the store was opened."""

    median: float
    p99: float
    p99_computing: float  # of processor time
    grown: int | None


def measure(tokens: int, vocabulary: int) -> tuple[Built, Served]:
    Path("build").mkdir(exist_ok=True)  # the system's temporary folder may be in memory
    with tempfile.TemporaryDirectory(dir="build") as folder:
        built = _run_step(Built, "build", f"{folder}/store", tokens, vocabulary)
        return built, _run_step(Served, "serve", f"{folder}/store", tokens, vocabulary)


def _run_step(kind: type[Figures], step: str, store: str, tokens: int, vocabulary: int) -> Figures:
    command = [sys.executable, "-m", "benchmarks.datastore", "--tokens", str(tokens), "--vocabulary", str(vocabulary)]
    done = subprocess.run([*command, "--step", step, "--store", store], stdout=subprocess.PIPE, text=True, check=True)
    return kind(**json.loads(done.stdout.splitlines()[-1]))


def iter_parts(tokens: int, vocabulary: int) -> Iterator[NDArray[np.int64]]:
    """Yield the token stream, the same for the same arguments."""
    for start in range(0, tokens, PART):
        rng = np.random.default_rng([SEED, start])
        ids = (rng.zipf(EXPONENT, min(PART, tokens - start)) - 1) % vocabulary
        for phrase in rng.integers(10, 200, PHRASES):
            to, source = rng.integers(0, len(ids) - phrase, 2)
            ids[to : to + phrase] = ids[source : source + phrase]
        yield ids


class DocumentStream:
    """The stream as documents, and the seconds spent on generating it."""

    def __init__(self, tokens: int, vocabulary: int) -> None:
        self.stream, self.seconds = iter_parts(tokens, vocabulary), 0.0

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        begun = time.perf_counter()
        for part in self.stream:
            self.seconds += time.perf_counter() - begun
            yield from np.array_split(part, max(1, len(part) // DOCUMENT))
            begun = time.perf_counter()


def build_step(store: Path, tokens: int, vocabulary: int) -> Built:
    """Build a store; generating the tokens is not counted."""
    from resource import RUSAGE_SELF, getrusage

    from specbench.datastore.build import build_datastore

    documents, begun = DocumentStream(tokens, vocabulary), time.perf_counter()
    build_datastore(documents, store, vocabulary, None, "benchmarks.datastore")
    seconds = time.perf_counter() - begun - documents.seconds
    return Built(seconds, getrusage(RUSAGE_SELF).ru_maxrss * 1024)


def serve_step(store: Path, tokens: int, vocabulary: int) -> Served:
    """Query a store with pieces of the stream; every other starts with random tokens, so that a shorter suffix matches."""
    import torch

    from methods.rest import Rest
    from specbench.setup.compose import compose_run
    from specbench.setup.instantiate import instantiate

    torch.set_num_threads(1)
    settings = compose_run(["method=[rest]", f"target.datastore={store}"]).method["rest"]
    before = measure_anonymous()
    drafter = instantiate(settings, Rest, "method.rest")
    target: Any = SimpleNamespace(vocabulary=vocabulary, device=torch.device("cpu"))
    drafter.bind(target)
    times = 1e3 * np.array([_time_query(drafter, query) for query in iter_queries(tokens, vocabulary)][WARM:])  # (queries, 2)
    after = measure_anonymous()
    grown = None if before is None or after is None else after - before
    (median, _), (p99, computing) = np.percentile(times, 50, axis=0), np.percentile(times, 99, axis=0)
    return Served(float(median), float(p99), float(computing), grown)


def iter_queries(tokens: int, vocabulary: int) -> Iterator[list[int]]:
    rng = np.random.default_rng(SEED)
    stream = np.concatenate(list(iter_parts(min(tokens, 4 * PART), vocabulary)))
    for number in range(WARM + QUERIES):
        end = int(rng.integers(LONGEST, len(stream)))
        query = stream[end - LONGEST : end].copy()
        if number % 2:
            query[: LONGEST - int(rng.integers(2, 16))] = rng.integers(0, vocabulary)
        yield query.tolist()


def _time_query(drafter: Any, query: list[int]) -> tuple[float, float]:
    """Return wall-clock and processor seconds of a draft."""
    begun, computing = time.perf_counter(), time.thread_time()
    drafter.draft(query, 50)
    return time.perf_counter() - begun, time.thread_time() - computing


def measure_anonymous() -> int | None:
    """Return this process's memory not backed by files, in bytes (Linux only)."""
    memory = psutil.Process().memory_info()
    return memory.rss - memory.shared if hasattr(memory, "shared") else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--vocabulary", type=int, default=VOCABULARIES[16])
    parser.add_argument("--step", choices=["build", "serve"], help=argparse.SUPPRESS)
    parser.add_argument("--store", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step is None:
        built, served = measure(options.tokens, options.vocabulary)
        print(json.dumps({**asdict(built), **asdict(served)}))
    else:
        step = build_step if options.step == "build" else serve_step
        print(json.dumps(asdict(step(options.store, options.tokens, options.vocabulary))))


if __name__ == "__main__":
    main()
