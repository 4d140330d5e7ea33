"""The forward that runs use: steps of one and of several nodes against the memory's speed, long contexts, large vocabularies."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import torch

from specbench.decoding.kv_store import KVStore
from specbench.decoding.language_model import LanguageModel
from specbench.decoding.largest import find_largest
from specbench.decoding.tree import DraftTree
from specbench.diagnose.roofline import measure_read_bandwidth, time_rows
from specbench.models.forwards import Shape, choose_forward
from specbench.setup.compose import compose_run
from specbench.setup.objects import load_target

REPEATS = 60
PROMPT = 200  # tokens before the nodes of a step
NODES = 9  # a root and eight drafted tokens
CONTEXTS = (4_000, 16_000)  # entries of the KV store
VOCABULARY, ROWS = 262_144, 11


@dataclass(frozen=True)
class Step:
    """Seconds of forwards over one node and over NODES; share: of the memory's reading speed that the first one takes."""

    one: float
    several: float
    share: float


def measure_step(*overrides: str) -> Step:
    """Time the target's forwards after a prompt, in turns."""
    model = _load(*overrides)
    one, several = (median(taken) / 1e3 for taken in time_rows(model, [1, NODES], PROMPT, REPEATS).values())
    weights = sum(weight.nbytes for weight in model.model.parameters())
    return Step(one, several, weights / one / measure_read_bandwidth())


@torch.inference_mode()
def measure_growth(*overrides: str) -> float:
    """Return by how much a step's time grows between CONTEXTS, over the growth of the bytes that it reads."""
    model = _load(*overrides)
    seconds, read = [], []
    for length in CONTEXTS:
        store = _fill(model, length, max(CONTEXTS) + 1)
        seconds += _time([lambda: model.forward(store, [DraftTree.chain(torch.tensor([7]))])])  # noqa: B023
        read.append(_read_bytes(model, store))
    return (seconds[1] / seconds[0] - 1) / (read[1] / read[0] - 1)


def measure_choosing() -> tuple[float, float]:
    """Return seconds to find the largest of VOCABULARY logits in ROWS rows in bfloat16: ours, and torch's argmax."""
    logits = torch.randn(ROWS, VOCABULARY, generator=torch.Generator().manual_seed(0)).bfloat16()
    ours, argmax = _time([lambda: find_largest(logits), lambda: logits.argmax(dim=-1)])
    return ours, argmax


def _load(*overrides: str) -> LanguageModel:
    model = load_target(compose_run(list(overrides)).target).model
    choose_forward(model, [Shape(), Shape(several=True)])
    return model


def _fill(model: LanguageModel, length: int, capacity: int) -> KVStore:
    """Return a store that holds `length` entries; those after a short prompt are zeros, which take as long to read."""
    store = model.create_store(capacity)
    model.prefill(store, [torch.arange(PROMPT) + 5])
    store.lengths[0] = length
    return store


def _read_bytes(model: LanguageModel, store: KVStore) -> int:
    return sum(weight.nbytes for weight in model.model.parameters()) + store.lengths[0] * store.entry_bytes


def _time(calls: list[Callable[[], object]]) -> list[float]:
    """Return the median seconds of each call; they take turns."""
    taken: list[list[float]] = [[] for _ in calls]
    for number in range(REPEATS + 3):
        for call, seconds in zip(calls, taken, strict=True):
            begun = perf_counter()
            call()
            seconds += [perf_counter() - begun] if number >= 3 else []
    return [median(seconds) for seconds in taken]
