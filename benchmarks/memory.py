"""Measures how far memory grows after loading while questions are answered, and whether it then stays flat."""

from dataclasses import dataclass
from itertools import product

import psutil
import torch

from benchmarks.embedded import load_bench
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
        """Allowed growth: the KV store, and a tenth of everything."""
        return self.kv + 0.1 * (self.loaded + self.kv)


def measure_memory(device: torch.device) -> int:
    """Return the peak of torch's allocation on a GPU, this process's memory on a CPU, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return psutil.Process().memory_info().rss


def measure_growth(*overrides: str) -> Growth:
    """Measure pld, sps and the trained drafters on a question per task, answered twice."""
    bench = load_bench(f"method=[{','.join(METHODS)}]", *overrides)
    device = bench.target.model.device
    reset_peak_memory(device)
    used = [measure_memory(device)]
    for _ in range(2):
        for prompt, label in product(bench.prompts, bench.drafters):
            bench.generate(label, prompt)
        used.append(measure_memory(device))
    return Growth(used[0], used[1], used[2], bench.engine._store.bytes if bench.engine._store else 0)
