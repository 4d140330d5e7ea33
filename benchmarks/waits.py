"""How often the host waits for a CUDA device per step, by method and line of code, as torch's own check reports it.

On a CPU nothing waits, and the table says so. The tests hold the same counts on a pretend card.
"""

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.table import Table

from benchmarks.embedded import load_bench
from specbench import ROOT

TOKENS = 64
PLACES = 3  # lines named per method


def measure_waits(methods: Sequence[str], *overrides: str) -> Table:
    """Decode a prompt by each method twice, as the first turn lays out static trees; count what the second waits for."""
    bench = load_bench(f"method=[{','.join(methods)}]", *overrides)
    table = Table("method", "waits per step", "where", title="How often the host waits for the device")
    for label in bench.drafters:
        bench.generate(label, bench.prompts[0], TOKENS)
        waits: Counter[str] = Counter()
        with watch(bench.target.model.device, waits):
            out = bench.generate(label, bench.prompts[0], TOKENS)
        where = ", ".join(f"{count} × {place}" for place, count in waits.most_common(PLACES))
        table.add_row(label, f"{waits.total() / max(1, out.steps):.1f}", where or "nowhere")
    return table


@contextmanager
def watch(device: torch.device, waits: Counter[str]) -> Iterator[None]:
    """Count warnings of synchronising operations by file and line."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits.update(name_place(message.filename, message.lineno) for message in caught if "synchroniz" in str(message.message))


def name_place(file: str, line: int) -> str:
    path = Path(file)
    return f"{path.relative_to(ROOT) if path.is_relative_to(ROOT) else path.name}:{line}"
