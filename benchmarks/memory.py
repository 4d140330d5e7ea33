"""Memory after loading: how far it grows while questions are answered, and whether it stays flat."""

import os
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch

from specbench.compose import composed
from specbench.decoding.loop import Sampling
from specbench.engine.native import Native
from specbench.prompts import render
from specbench.provenance import reset_peak_memory
from specbench.run import built, questions_of, target_of


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
    """Bytes: the peak of torch's allocation on a GPU; this process in memory on a CPU (Linux)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def growth(*overrides: str, limit: int = 1) -> Growth:
    config = composed([*overrides, "target=mini", "suite=mini", "method=[pld,sps]"])
    target, suite = target_of(config.target), built(config.suite)
    drafters = {label: built(settings) for label, settings in config.method.items()}
    engine = Native(profile=False)
    engine.open(target.model, drafters)
    reset_peak_memory(target.model.device)
    loaded = in_use(target.model.device)
    sampling = Sampling(max_new_tokens=256, stop_token_ids=target.model.eos_ids)
    questions = questions_of(suite, list(config.task), limit, 0)
    prompts = [render(target.chat, [(question.turns[0], None)], target.tokenizer) for question in questions]
    seen = []
    for _ in range(2):
        for prompt, label in product(prompts, drafters):
            engine.generate(label, prompt, sampling)
        seen.append(in_use(target.model.device))
    assert engine._store is not None
    return Growth(loaded, *seen, engine._store.bytes)
