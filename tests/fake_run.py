"""Fabricates a tiny run directory. A test fixture: no number in it was measured."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from specbench.records.run_directory import RunDirectory
from specbench.records.trial import Trial, hash_ids

CONFIG = {
    "target": {"name": "fake", "shape": "100m", "dtype": "bfloat16"},
    "engine": {"native": {"_target_": "specbench.engine.native.Native"}},
    "sampling": {"temperature": 0},
    "suite": {"name": "fake-suite"},
}
PROVENANCE = {
    "dtype": "bfloat16",
    "started": "2026-11-20T12:00:00Z",
    "device": {"kind": "cpu", "name": "no such processor"},
    "versions": {"torch": "0.0", "transformers": "0.0"},
}


def trial(method: str, committed: Sequence[int] | None, seconds: float, **changes: Any) -> Trial:
    """A finished turn: one token of prefill, then `committed` per step; depth: the largest commit less 1."""
    steps = list(committed or [])
    depth = max(steps, default=1) - 1
    fields: dict[str, Any] = {
        "run_id": "fake", "suite": "fake-suite", "task": "qa", "category": "qa", "question_id": 1, "turn": 0,
        "context": "reference", "method": method, "seed": 0, "repeat": 0, "order": 0, "state": "cold",
        "prompt_tokens": 5, "prompt_sha256": hash_ids([3] * 5), "new_tokens": 1 + sum(steps),
        "finish_reason": "length",
        "steps": len(steps), "target_forwards": len(steps) + 1, "draft_forwards": 0,
        "drafted": [depth] * len(steps), "nodes": [depth + 1] * len(steps), "depth": [depth] * len(steps),
        "accepted": [count - 1 for count in steps], "committed": steps,
        "prefill_s": 0.0, "decode_s": seconds, "output_sha256": hash_ids([7] * (1 + sum(steps))),
        "peak_memory_bytes": 1_000_000,
    }  # fmt: skip
    return Trial(**{**fields, **changes})


def failed(method: str, **changes: Any) -> Trial:
    """An error row."""
    return trial(method, None, 0.0, finish_reason="error", error="out of memory", decode_s=None, **changes)


def write_run(path: Path, trials: Sequence[Trial], **provenance: Any) -> RunDirectory:
    """A run directory with these trials."""
    run = RunDirectory(path)
    run.write_config(CONFIG)
    run.write_provenance({**PROVENANCE, **provenance})
    for one in trials:
        run.append_trials(one)
    return run


def made_up_trials(methods: dict[str, float], tasks: Sequence[str], questions: int = 6, seed: int = 0) -> list[Trial]:
    """Two repeats of methods with these acceptance probabilities: drafts of five tokens, a step of 24 ms."""
    rng = random.Random(seed)
    return [
        one
        for number, task in enumerate(tasks)
        for question in range(questions)
        for method, chance in {"autoregressive": 0.0, **methods}.items()
        for one in _repeats(rng, method, min(0.95, chance * rng.uniform(0.8, 1.2)), task, 100 * number + question)
    ]


def _repeats(rng: random.Random, method: str, chance: float, task: str, question_id: int) -> list[Trial]:
    length = 5 if chance else 0
    committed: list[int] = []
    while sum(committed) < 60:
        kept = next((k for k in range(length) if rng.random() > chance), length)
        committed.append(min(kept + 1, 60 - sum(committed)))
    seconds = len(committed) * (0.024 if chance else 0.020)
    lists = {name: [count] * len(committed) for name, count in (("drafted", length), ("depth", length), ("nodes", length + 1))}
    names = {"task": task, "category": task, "question_id": question_id, "prefill_s": 0.03}
    return [trial(method, committed, seconds * rng.uniform(0.99, 1.01), repeat=repeat, **names, **lists) for repeat in range(2)]
