"""Suffix decoding as its text grows: time to count a token and to draft, and memory per token.

    python -m benchmarks.suffix [--tokens N]

Requests of 256 tokens, the first 32 their prompt, follow one another in the embedded target's datastore: chats, which repeat
themselves as answers do. Earlier answers are searched too, so an answer's token is counted twice: in its request and among them.
"""

import argparse
import gc
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from methods.suffix import SuffixDecoding, SuffixState
from specbench.datastore.store import Datastore
from specbench.setup.compose import compose_run
from specbench.setup.instantiate import instantiate

STORE = "specbench/zoo/datastore"
TOKENS = 100_000
REQUEST, PROMPT = 256, 32  # tokens
DRAFTED = 8_000  # drafts timed, after the text
METHODS = ("suffix", "suffix_tree")
MOST_SECONDS, MOST_BYTES = 50e-6, 1000  # of a draft; per token
NOTHING: Any = None  # of what drafters that read the target are given
MOST_GROWTH = 2.0  # of the last tenth's time per token over the first's


@dataclass(frozen=True)
class Figures:
    """first, last: seconds to count a token of the text's first and last tenth. draft, slow: seconds, median and p99.

    length: drafted tokens on average. memory: bytes per token.
    """

    first: float
    last: float
    draft: float
    slow: float
    length: float
    memory: float


def measure(label: str, tokens: int = TOKENS) -> Figures:
    """Count a text, then draft at each token of the requests after it. Memory is measured in a separate count."""
    requests = list(iter_requests(tokens + DRAFTED))
    text, later = requests[: tokens // REQUEST], requests[tokens // REQUEST :]
    drafter = build_drafter(label)
    seconds = [_time_request(drafter, request) for request in text]
    tenth = len(seconds) // 10
    first, last = (sum(part) / tenth / REQUEST for part in (seconds[:tenth], seconds[-tenth:]))
    drafts = [draft for request in later for draft in _time_drafts(drafter, request)]
    times, lengths = np.array(drafts).T
    return Figures(
        first, last, float(np.median(times)), float(np.percentile(times, 99)), lengths.mean(), measure_memory(label, text)
    )


def iter_requests(tokens: int) -> Iterator[list[int]]:
    (ids,) = (chunk.ids for chunk in Datastore.open(STORE).chunks)
    for start in range(0, min(tokens, len(ids)) - REQUEST + 1, REQUEST):
        yield ids[start : start + REQUEST].tolist()


def build_drafter(label: str) -> SuffixDecoding:
    return instantiate(compose_run([f"method=[{label}]"]).method[label], SuffixDecoding, f"method.{label}")


def measure_memory(label: str, text: list[list[int]]) -> float:
    drafter = build_drafter(label)
    gc.collect()
    tracemalloc.start()
    for request in text:
        _count(drafter, request)
    gc.collect()
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return used / sum(map(len, text))


def _count(drafter: SuffixDecoding, request: list[int]) -> SuffixState:
    state = drafter.start(request[: PROMPT + 1], NOTHING, NOTHING)
    _commit(drafter, state, request[PROMPT + 1 :])
    return state


def _commit(drafter: SuffixDecoding, state: SuffixState, tokens: list[int]) -> None:
    verified: Any = SimpleNamespace(tokens=tokens)
    drafter.observe(state, NOTHING, NOTHING, verified)


def _time_request(drafter: SuffixDecoding, request: list[int]) -> float:
    begun = time.perf_counter()
    _count(drafter, request)
    return time.perf_counter() - begun


def _time_drafts(drafter: SuffixDecoding, request: list[int]) -> Iterator[tuple[float, int]]:
    """Yield the seconds and the length of the draft at each token of an answer."""
    state = _count(drafter, request[: PROMPT + 1])
    for token in request[PROMPT + 1 :]:
        begun = time.perf_counter()
        tree = drafter.draft(state, REQUEST)
        yield time.perf_counter() - begun, len(tree) - 1
        _commit(drafter, state, [token])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    tokens = parser.parse_args().tokens
    most = Datastore.open(STORE).tokens - DRAFTED
    if not 10 * REQUEST <= tokens <= most:
        parser.error(f"--tokens {tokens}: expected {10 * REQUEST:,} to {most:,}")
    for label in METHODS:
        found = measure(label, tokens)
        print(
            f"{label}, {tokens:,} tokens: a draft {1e6 * found.draft:.0f} µs (median), {1e6 * found.slow:.0f} µs (p99), "
            f"{found.length:.1f} tokens; a token counted in {1e6 * found.first:.1f} µs (first tenth), "
            f"{1e6 * found.last:.1f} µs (last); {found.memory:.0f} bytes per token"
        )


if __name__ == "__main__":
    main()
