"""Compares a batch with one sequence after another: tokens per second, and the drafting time per step of a sequence.

python -m benchmarks.batches [KEY=VALUE …]   # target.shape=100m by default
"""

import sys
from dataclasses import dataclass, field
from statistics import median

from rich.table import Table

from benchmarks.embedded import Bench, exit_with, load_bench
from specbench.cli.output import console
from specbench.decoding.loop import Generation
from specbench.decoding.sampling import Sampling
from specbench.records.trial import BASELINE

BATCH, TOKENS, ROUNDS = 8, 64, 5
METHODS = ("sps", "eagle2")
FASTER = {BASELINE: 4.5, **dict.fromkeys(METHODS, 2.0)}  # at least: tokens per second; drafting


@dataclass
class Paces:
    """A batch over one sequence after another, by round: its tokens per second after the prefill, and its speed of drafting."""

    rates: list[float] = field(default_factory=list)
    drafting: list[float] = field(default_factory=list)


def measure(*overrides: str) -> dict[str, Paces]:
    """Decode the same prompts alone and as a batch, in turns, to a fixed length; return the paces by method."""
    bench = load_bench(f"method=[{','.join(METHODS)}]", "task=[qa]", *overrides, limit=BATCH, batch=BATCH)
    found = {label: Paces() for label in bench.drafters}
    for number in range(ROUNDS + 1):
        for label, paces in found.items():
            alone = [out for prompt in bench.prompts for out in _decode(bench, label, [prompt])]
            together = _decode(bench, label, bench.prompts)
            if number:  # the first round warms up
                paces.rates.append(sum(out.decode_s for out in alone) / together[0].decode_s)
                paces.drafting.append(sum(out.draft_s or 0 for out in alone) / max(together[0].draft_s or 0, 1e-9))
    return found


def _decode(bench: Bench, label: str, prompts: list[list[int]]) -> list[Generation]:
    """Return outputs of equal length. Time of drafting is measured for methods that draft, which synchronises the device."""
    bench.engine.profile = label != BASELINE
    return bench.engine.generate_group(label, prompts, [Sampling(max_new_tokens=TOKENS)] * len(prompts))


def main() -> int:
    table = Table("method", "tokens/s", "drafting", title=f"{BATCH} sequences at once, over one after another: median [range]")
    for label, paces in measure(*(sys.argv[1:] or ["target.shape=100m"])).items():
        table.add_row(label, _describe(paces.rates), _describe(paces.drafting) if label != BASELINE else "")
    console.print(table)
    return 0


def _describe(values: list[float]) -> str:
    return f"{median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


if __name__ == "__main__":
    exit_with(main)
