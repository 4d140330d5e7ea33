"""Memory after loading: how far it grows while questions are answered, and whether it stays flat."""

from dataclasses import dataclass
from itertools import product

import psutil
import torch

from benchmarks.embedded import opened
from specbench.machine.devices import reset_peak_memory

METHODS = ("pld", "sps", "medusa", "hydra_heads", "eagle", "eagle2", "eagle3")


@dataclass(frozen=True)
class Growth:
    """Bytes: `loaded` after loading, `first` after all questions once, `last` after all again; `kv` the KV store's own.

    On a GPU the peak of what torch allocated, on a CPU what the process holds.
    """

    loaded: int
    first: int
    last: int
    kv: int

    @property
    def allowed(self) -> float:
        """How far it may grow: the KV store, and a tenth of everything."""
        return self.kv + 0.1 * (self.loaded + self.kv)


def in_use(device: torch.device) -> int:
    """Bytes: the peak of torch's allocation on a GPU; this process in memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return psutil.Process().memory_info().rss


def growth(*overrides: str) -> Growth:
    """What pld, sps and the trained drafters take for a question of each task, asked twice."""
    there = opened(f"method=[{','.join(METHODS)}]", *overrides)
    device = there.target.model.device
    reset_peak_memory(device)
    loaded, seen = in_use(device), []
    for _ in range(2):
        for prompt, label in product(there.prompts, there.drafters):
            there.generate(label, prompt)
        seen.append(in_use(device))
    assert there.engine._store is not None
    return Growth(loaded, *seen, there.engine._store.bytes)
