"""A run directory with every file that a run can have, and copies of it with another file. Not measured."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from specbench.records.trial import Prompt, hash_ids
from tests.fake_run import CONFIG, PROVENANCE, made_up_trials, write_run

RUN_JSON = PROVENANCE | {
    "machine": {"os": "Linux", "architecture": "x86_64", "cpu": "no such", "cores": 2, "threads": 2, "memory_bytes": 10**10},
    "git": {"commit": "8694c0f2b1e727f768ec77945bcacb12d38ec0a7", "dirty": False},
    "turns": 8,
    "codes": {"pld": "a"},
    "checkpoints": {"pld": "b"},
    "leakage": {"pld": [{"name": "store", "sha256": "c", "tokens": 9, "questions": 4, "leaked": 1}]},
    "forward_ms": [{"rows": rows, "milliseconds": [1.0, 1.1]} for rows in (1, 4)],
    "baseline": [
        {"engine": "native", "dtype": "bfloat16", "tokens_per_second": [40.0, 41.0]},
        {"engine": "hf", "dtype": "bfloat16", "tokens_per_second": [39.0, 42.0]},
    ],
    "baseline_failed": {"hf float16": "TypeError: no"},
    "self_test": {"target": {"tokens": 36, "beyond": {"60": {"tokens": 0}}}, "sps": {"tokens": 36, "beyond": {}}},
    "continued": [{"started": "2026-11-21T12:00:00Z", "differs": ["git"], "versions": {"torch": "0.1"}}],
}
WHOLE = CONFIG | {
    "sampling": {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": 61},
    "method": {"autoregressive": {"_target_": "a.B"}, "pld": {"_target_": "methods.pld.PromptLookup", "length": 10}},
    "task": {"qa": {"name": "qa"}, "rag": {"name": "rag"}},
    "repeats": 2,
    "limit": 2,
}


def write_whole_run(folder: Path) -> Path:
    """A run with every file, ids and texts included."""
    ids = [7] * 61
    trials = made_up_trials({"pld": 0.4}, ("qa", "rag"), 2)
    trials = [dataclasses.replace(one, output_ids=ids if one.repeat == 0 else None) for one in trials]
    run = write_run(folder, trials, **RUN_JSON)
    run.write_config(WHOLE)
    for one in trials:
        if one.repeat == 0:
            run.append_text(one.method, one.question_id, 0, "a text", 0.5)
            if one.method == "pld":
                run.append_prompt(Prompt(question_id=one.question_id, turn=0, prompt_ids=[3] * 5, sha256=hash_ids([3] * 5)))
    run.write_summary("run\n")
    return run.path


def copy_with(stored: Path, folder: Path, file: str, content: bytes | str) -> Path:
    """A copy of the run with another file in it."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(stored, folder)
    (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder
