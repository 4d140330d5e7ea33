"""Time and memory of the report of a full run: 12 methods, six tasks, 480 questions, three repeats. Its records are made up.

python -m benchmarks.report_size
"""

import json
import random
import resource
import tempfile
from pathlib import Path
from time import perf_counter

from specbench.cli.parser import console
from specbench.records.run_directory import RunDirectory
from specbench.records.trial import BASELINE, Trial, ids_sha256
from specbench.report.render import render

METHODS, TASKS, QUESTIONS, REPEATS, TOKENS = 12, 6, 80, 3, 300
BOUNDS = {"seconds": 30.0, "GiB": 2.0}


def trial(rng: random.Random, method: int, task: int, question: int, repeat: int) -> Trial:
    """An answer of TOKENS tokens, in steps that commit up to as many as the method's number."""
    committed: list[int] = []
    while sum(committed) < TOKENS - 1:
        committed.append(min(1 + rng.randrange(method + 1), TOKENS - 1 - sum(committed)))
    depth = [method] * len(committed)
    return Trial(
        run_id="made-up", suite="made-up", task=f"task {task}", category=f"task {task}", question_id=1000 * task + question,
        turn=0, context="reference", method=f"a_method_of_rather_a_long_name_{method}" if method else BASELINE, seed=0,
        repeat=repeat, order=method, state="cold", prompt_tokens=100, prompt_sha256="", new_tokens=TOKENS, finish_reason="length",
        steps=len(committed), target_forwards=len(committed) + 1, draft_forwards=0, drafted=depth, nodes=depth, depth=depth,
        accepted=[count - 1 for count in committed], committed=committed, prefill_s=0.1,
        decode_s=0.02 * len(committed) * rng.uniform(0.9, 1.1), output_sha256=ids_sha256([question]), peak_memory_bytes=10**9,
    )  # fmt: skip


def main() -> None:
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        run = RunDirectory(Path(folder) / "run")
        run.write_config({"target": {"name": "made-up"}, "engine": {"native": {}}, "sampling": {"temperature": 0}})
        run.write_provenance({"dtype": "float16", "device": {"name": "none"}})
        places = [
            (m, t, q, r) for r in range(REPEATS) for t in range(TASKS) for q in range(QUESTIONS) for m in range(METHODS + 1)
        ]
        lines = [json.dumps(trial(rng, *place).to_row()) + "\n" for place in places]
        (run.path / "trials.jsonl").write_text("".join(lines), encoding="utf-8")
        begun = perf_counter()
        render([run.path], Path(folder) / "report")
        seconds, gib = perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    console.print(
        f"{len(lines):,} records: {seconds:.1f} s (bound {BOUNDS['seconds']:g}), {gib:.2f} GiB (bound {BOUNDS['GiB']:g})"
    )


if __name__ == "__main__":
    main()
