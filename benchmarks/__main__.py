"""make benchmarks: every promise of the project about speed and memory, measured here, with the bound it has to keep.

    python -m benchmarks [--limit N] [--out DIR]

The last thing printed is a table: promise, bound, measured (with its 95 % interval where it is a ratio of rates), kept or not.
"""

import argparse
import time
from pathlib import Path

from rich.table import Table

from benchmarks import datastore, embedded, memory, overhead, peer, trained, training_free, verification
from specbench.analysis.metrics import OVERALL
from specbench.analysis.statistics import Interval
from specbench.cli.parser import console

TASKS = ["mt_bench", "translation", "summarization", "qa", "math_reasoning", "rag"]
WIDE, BOTH = "target.shape=100m", "engine=[native,hf]"
SPS = ["sps", "sps_spec_bench", "sps_confidence"]


class Promises:
    """The table: what was promised, what was measured, and whether that keeps it."""

    def __init__(self) -> None:
        self.table = Table("promise", "bound", "measured", "kept", title="Promises, measured on this machine")

    def add(self, promise: str, bound: str, measured: str, kept: bool) -> None:
        self.table.add_row(promise, bound, measured, "yes" if kept else "[bold red]no[/]")

    def at_least(self, promise: str, bound: float, found: Interval) -> None:
        measured = f"{found.estimate:.3f} [{found.low:.3f}, {found.high:.3f}]"
        self.add(promise, f"≥ {bound:.2f}", measured, found.estimate >= bound)


def speed(promises: Promises, out: Path, limit: int) -> None:
    """Each side at the best of its settings."""
    wide = embedded.run(out / "peer-100m", BOTH, WIDE, f"method=[pld,{','.join(SPS)}]", f"limit={limit}", "repeats=1")
    mini = embedded.run(out / "peer-mini", BOTH, "method=[]", "target.dtype=float32", f"limit={limit}", "repeats=2")
    for promise, bound, run_dir, labels in (
        ("autoregressive, native over generate, 100m", 1.0, wide, ["autoregressive"]),
        ("autoregressive, native over generate, mini float32", 1.05, mini, ["autoregressive"]),
        ("sps, native over assisted generation, 100m", 1.1, wide, SPS),
        ("pld, native over prompt lookup, 100m", 1.05, wide, ["pld"]),
    ):
        ours, theirs = peer.best(run_dir, labels), peer.best(run_dir, [f"{label}@hf" for label in labels])
        promises.at_least(f"{promise}: {ours} over {theirs}", bound, peer.ratio(run_dir, ours, theirs))
    promises.at_least("sps over autoregressive, six tasks, 100m", 2.2, peer.cell(wide, "sps"))
    promises.at_least("pld over autoregressive, summarization, 100m", 1.4, peer.cell(wide, "pld", "summarization"))
    for task in TASKS:
        promises.at_least(f"pld over autoregressive, {task}, 100m", 0.95, peer.cell(wide, "pld", task))


def trained_drafters(promises: Promises, out: Path, limit: int) -> None:
    rows = trained.overall(out / "trained-100m", WIDE, f"limit={limit}", "repeats=1")
    for label in trained.METHODS:
        eagle = label.startswith("eagle")
        row = rows.loc[label]
        speedup, conversion = (Interval(row[name], row[f"{name}_low"], row[f"{name}_high"]) for name in ("speedup", "conversion"))
        promises.at_least(f"{label} over autoregressive, six tasks, 100m", 1.8 if eagle else 1.6, speedup)
        promises.at_least(f"conversion of {label}, 100m", 0.45 if eagle else 0.6, conversion)
    best = rows.loc[rows["speedup"].idxmax()]
    promises.at_least(f"the best of them, {best.name}", 2.4, Interval(best["speedup"], best["speedup_low"], best["speedup_high"]))
    steps = trained.step(out / "step-100m", "eagle2_spec_bench", WIDE, "limit=1")
    promises.add("a step of EAGLE-2, 60 nodes, 100m", "≤ 2.5 autoregressive steps", f"{steps:.2f}", steps <= 2.5)


def outside(promises: Promises) -> None:
    decoding, drafting = {"autoregressive": 1, "pld": 3, "sps": 3}, dict.fromkeys(training_free.METHODS, 5)
    small = {"autoregressive": 3, "pld": 5, "sps": 5}
    for shape, overrides, bounds in (("100m", [WIDE], decoding | drafting), ("mini", ["target.dtype=float32"], small)):
        methods = [label for label in bounds if label != "autoregressive"]
        for label, share in overhead.shares(methods, *overrides).items():
            kept = 100 * share <= bounds[label]
            promises.add(f"time outside the forwards, {label}, {shape}", f"≤ {bounds[label]} %", f"{100 * share:.2f} %", kept)


def choosing(promises: Promises) -> None:
    for (label, rule), share in verification.shares(WIDE).items():
        bound = verification.BOUNDS[rule]
        promises.add(f"choosing, {rule}, {label}, 100m", f"≤ {bound} % of a step", f"{100 * share:.2f} %", 100 * share <= bound)


def training_free_drafters(promises: Promises, out: Path, limit: int) -> None:
    rows = training_free.cells(out / "training-free-100m", WIDE, f"limit={limit}", "repeats=1")
    for label, bound in training_free.BOUNDS.items():
        promises.at_least(f"{label} over autoregressive, six tasks, 100m", bound, training_free.interval(rows, label, OVERALL))
    for task in [OVERALL, *TASKS]:
        sam, pld = (training_free.interval(rows, label, task).estimate for label in ("sam_decoding", "pld"))
        promises.add(f"sam_decoding over pld, {task}, 100m", "≥ 1.00", f"{sam / pld:.3f}", sam >= pld)
    for task in TASKS:
        both, *parts = (training_free.interval(rows, label, task).estimate for label in training_free.HYBRID)
        share = both / max(parts)
        promises.add(f"sam_eagle2 against the better of its parts, {task}, 100m", "≥ 0.97", f"{share:.3f}", share >= 0.97)


def room(promises: Promises) -> None:
    found = memory.growth(WIDE)
    grown, later = found.last - found.loaded, found.last - found.first
    promises.add("growth after loading, 100m", f"≤ {found.allowed / 1e6:.0f} MB", f"{grown / 1e6:.0f} MB", grown <= found.allowed)
    flat = later <= 0.01 * found.loaded
    promises.add("growth when all is asked again, 100m", "≤ 1 % of all", f"{later / 1e6:.1f} MB", flat)


def stores(promises: Promises) -> None:
    for bits, vocabulary in datastore.VOCABULARIES.items():
        built, served = datastore.measured(datastore.TOKENS, vocabulary)
        what = f"datastore of 100 M tokens, {bits} bits"
        promises.add(f"building a {what}", "≤ 120 s", f"{built.seconds:.0f} s", built.seconds <= 120)
        promises.add(f"peak memory, {what}", "≤ 4 GiB", f"{built.peak / 2**30:.2f} GiB", built.peak <= 4 * 2**30)
        promises.add(f"retrieval and tree, {what}, median", "≤ 1 ms", f"{served.median:.2f} ms", served.median <= 1)
        slow = f"{served.p99:.2f} ms, {served.p99_computing:.2f} of computing"
        promises.add(f"retrieval and tree, {what}, p99", "≤ 4 ms", slow, served.p99 <= 4)
        if served.grown is not None:
            grown = f"{served.grown / 1e6:.1f} MB"
            promises.add(f"memory of its own while serving, {what}", "≤ 200 MB", grown, served.grown <= 200e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("results") / f"benchmarks-{time.strftime('%Y%m%d-%H%M%S')}")
    options = parser.parse_args()
    promises = Promises()
    outside(promises)
    choosing(promises)
    room(promises)
    stores(promises)
    speed(promises, options.out, options.limit)
    training_free_drafters(promises, options.out, options.limit)
    trained_drafters(promises, options.out, options.limit)
    console.print(promises.table)


if __name__ == "__main__":
    main()
