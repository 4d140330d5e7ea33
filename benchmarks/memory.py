"""Memory of the process after loading: how far it grows while questions are answered, and whether it stays flat."""

import os
from dataclasses import dataclass
from pathlib import Path

from specbench.compose import composed
from specbench.decoding.loop import Sampling
from specbench.engine.native import Native
from specbench.prompts import render
from specbench.run import built, questions_of, target_of


@dataclass(frozen=True)
class Growth:
    """Bytes: `loaded` after loading, `first` after the first six questions, `last` after all; `kv` the KV store's own."""

    loaded: int
    first: int
    last: int
    kv: int


def resident() -> int:
    """Bytes of this process in memory (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def growth(*overrides: str, limit: int = 3) -> Growth:
    config = composed([*overrides, "target=mini", "suite=mini", "method=[pld,sps]"])
    target, suite = target_of(config.target), built(config.suite)
    drafters = {label: built(settings) for label, settings in config.method.items()}
    engine = Native(profile=False)
    engine.open(target.model, drafters)
    loaded = resident()
    sampling = Sampling(max_new_tokens=256, stop_token_ids=target.model.eos_ids)
    seen = []
    for question in questions_of(suite, list(config.task), limit, 0):
        prompt = render(target.chat, [(question.turns[0], None)], target.tokenizer)
        for label in drafters:
            engine.generate(label, prompt, sampling)
        seen.append(resident())
    assert engine._store is not None
    return Growth(loaded, seen[5], seen[-1], engine._store.bytes)
