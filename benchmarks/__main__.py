"""make benchmarks: every promise of the project about speed and memory, measured here, with the bound it has to keep.

    python -m benchmarks [--limit N] [--out DIR]

The last thing printed is a table: promise, bound, measured (with its 95 % interval where it is a ratio of rates).
"""

import argparse
from pathlib import Path

from rich.table import Table

from benchmarks import memory, overhead, peer
from specbench.cli import console
from specbench.statistics import Interval

TASKS = ["mt_bench", "translation", "summarization", "qa", "math_reasoning", "rag"]
WIDE = "target.shape=100m"


def _shown(interval: Interval) -> str:
    return f"{interval.estimate:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def speed(table: Table, out: Path, limit: int) -> None:
    wide = peer.run(out / "peer-100m", WIDE, "method=[pld,sps]", f"limit={limit}", "repeats=2")
    mini = peer.run(out / "peer-mini", "method=[]", "target.dtype=float32", f"limit={limit}", "repeats=2")
    for promise, bound, run_dir, label in (
        ("autoregressive, native over generate, 100m", "≥ 1.00", wide, "autoregressive"),
        ("autoregressive, native over generate, mini float32", "≥ 1.05", mini, "autoregressive"),
        ("sps, native over assisted generation, 100m", "≥ 1.10", wide, "sps"),
        ("pld, native over prompt lookup, 100m", "≥ 1.05", wide, "pld"),
    ):
        table.add_row(promise, bound, _shown(peer.ratio(run_dir, label, f"{label}@hf")))
    table.add_row("sps over autoregressive, six tasks, 100m", "≥ 2.20", _shown(peer.cell(wide, "sps")))
    table.add_row("pld over autoregressive, summarization, 100m", "≥ 1.40", _shown(peer.cell(wide, "pld", "summarization")))
    for task in TASKS:
        table.add_row(f"pld over autoregressive, {task}, 100m", "≥ 0.95", _shown(peer.cell(wide, "pld", task)))


def outside(table: Table) -> None:
    for shape, overrides, bounds in (("100m", [WIDE], (1, 3, 3)), ("mini", ["target.dtype=float32"], (3, 5, 5))):
        for (label, share), bound in zip(overhead.shares(*overrides).items(), bounds, strict=True):
            table.add_row(f"time outside the forwards, {label}, {shape}", f"≤ {bound} %", f"{100 * share:.2f} %")


def room(table: Table) -> None:
    grown = memory.growth(WIDE)
    allowed = grown.kv + 0.1 * grown.loaded
    table.add_row("growth after loading, 100m", f"≤ {allowed / 1e6:.0f} MB", f"{(grown.last - grown.loaded) / 1e6:.0f} MB")
    table.add_row("growth from question 6 to 18, 100m", "flat", f"{(grown.last - grown.first) / 1e6:.1f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"))
    options = parser.parse_args()
    table = Table("promise", "bound", "measured", title="Promises, measured on this machine")
    outside(table)
    room(table)
    speed(table, options.out, options.limit)
    console.print(table)


if __name__ == "__main__":
    main()
