"""make benchmarks: speed and memory that no report shows, each measured against its bound.

    python -m benchmarks [outside] [forwards] [batches] [contexts] [choosing] [memory] [datastores] [servers] [suffix]

Without arguments, all nine; contexts takes 5 GB of memory. The output ends with a table: promise, bound, measured, kept. For
speedups see the report of `make bench-all`.
"""

import argparse
from collections.abc import Callable
from statistics import median

from rich.table import Table

from benchmarks import batches, datastore, forwards, memory, overhead, servers, suffix, verification
from specbench.cli.output import console, widen_console
from specbench.records.trial import BASELINE

WIDE = "target.shape=100m"
SMALL = "target.dtype=float32"
TRAINING_FREE = (
    *("sam_decoding", "sam_decoding_static", "sam_eagle2", "suffix"),
    *("token_recycling", "rest", "lookahead", "self_speculative"),
)
OUTSIDE = {  # per cent of a turn, by method
    WIDE: dict.fromkeys(("autoregressive", "pld", "sps", *TRAINING_FREE), 5),
    SMALL: {"autoregressive": 3, "pld": 5, "sps": 5},
}


class Promises:
    """The table of promises: bound, measured value, and whether it is kept."""

    def __init__(self) -> None:
        self.table = Table("promise", "bound", "measured", "kept", title="Promises, measured on this machine")

    def add(self, promise: str, bound: str, measured: str, kept: bool) -> None:
        self.table.add_row(promise, bound, measured, "yes" if kept else "[bold red]no[/]")


def outside(promises: Promises) -> None:
    for settings, bounds in OUTSIDE.items():
        methods = [label for label in bounds if label != "autoregressive"]
        for label, share in overhead.measure_shares(methods, settings).items():
            promise = f"time outside the forwards, {label}, {settings}"
            promises.add(promise, f"≤ {bounds[label]} %", f"{100 * share:.2f} %", 100 * share <= bounds[label])


def time_forwards(promises: Promises) -> None:
    step = forwards.measure_step(WIDE)
    promises.add("one node, 100m: of the reading bandwidth", "≥ 78 %", f"{100 * step.share:.0f} %", step.share >= 0.78)
    several = 1e3 * step.several
    promises.add(f"{forwards.NODES} nodes, 100m", "≤ 7.8 ms", f"{several:.1f} ms; one: {1e3 * step.one:.1f} ms", several <= 7.8)


def decode_batches(promises: Promises) -> None:
    for label, paces in batches.measure(WIDE).items():
        what, values = ("tokens/s", paces.rates) if label == BASELINE else ("drafting", paces.drafting)
        bound, found = batches.FASTER[label], median(values)
        promise = f"{what} of {batches.BATCH} sequences at once, {label}, 100m"
        promises.add(promise, f"≥ {bound} × one after another", f"{found:.2f}", found >= bound)


def contexts(promises: Promises) -> None:
    growth = forwards.measure_growth("target.shape=1b")
    promises.add("growth of a step from 4k to 16k entries, 1b", "≤ 1.5 of the bytes'", f"{growth:.1f}", growth <= 1.5)


def choosing(promises: Promises) -> None:
    ours, argmax = forwards.measure_choosing()
    what = f"choosing among {forwards.VOCABULARY:,} tokens, {forwards.ROWS} rows"
    promises.add(what, "≤ 1 ms", f"{1e3 * ours:.2f} ms; argmax: {1e3 * argmax:.2f} ms", ours <= 1e-3)
    for (label, rule), share in verification.measure_shares(WIDE).items():
        bound = verification.BOUNDS[rule]
        promises.add(f"choosing, {rule}, {label}, 100m", f"≤ {bound} % of a step", f"{100 * share:.2f} %", 100 * share <= bound)


def growth(promises: Promises) -> None:
    memory_use = memory.measure_growth(WIDE)
    grown = memory_use.last - memory_use.loaded
    later = memory_use.last - memory_use.first
    promises.add(
        "growth after loading, 100m", f"≤ {memory_use.allowed / 1e6:.0f} MB", f"{grown / 1e6:.0f} MB", grown <= memory_use.allowed
    )
    flat = later <= 0.01 * memory_use.loaded
    promises.add("growth when all questions are repeated, 100m", "≤ 1 % of all", f"{later / 1e6:.1f} MB", flat)


def datastores(promises: Promises) -> None:
    for bits, vocabulary in datastore.VOCABULARIES.items():
        built, served = datastore.measure(datastore.TOKENS, vocabulary)
        what = f"datastore of 100 M tokens, {bits} bits"
        promises.add(f"building a {what}", "≤ 120 s", f"{built.seconds:.0f} s", built.seconds <= 120)
        promises.add(f"peak memory, {what}", "≤ 4 GiB", f"{built.peak / 2**30:.2f} GiB", built.peak <= 4 * 2**30)
        promises.add(f"retrieval and tree, {what}, median", "≤ 1 ms", f"{served.median:.2f} ms", served.median <= 1)
        slow = f"{served.p99:.2f} ms, {served.p99_computing:.2f} of computing"
        promises.add(f"retrieval and tree, {what}, p99", "≤ 4 ms", slow, served.p99 <= 4)
        if served.grown is not None:
            grown = f"{served.grown / 1e6:.1f} MB"
            promises.add(f"private memory while serving, {what}", "≤ 200 MB", grown, served.grown <= 200e6)


def ask_servers(promises: Promises) -> None:
    found = median(servers.measure_rates(servers.load_prompts(WIDE, "target.dtype=bfloat16"))["bare"])
    promise = "llama.cpp's tokens/s for our client, 100m"
    promises.add(promise, f"≥ {servers.LEAST_RATE} of a bare socket's", f"{found:.3f}", found >= servers.LEAST_RATE)
    share, _ = servers.measure_streams()
    bound = f"≤ {servers.MOST_CORE:.0%} of a core"
    promises.add(f"{servers.STREAMS} streams at once", bound, f"{share:.1%}", share <= servers.MOST_CORE)


def count_suffixes(promises: Promises) -> None:
    found = suffix.measure("suffix")
    what = f"after {suffix.TOKENS:,} tokens"
    seconds = f"{1e6 * found.draft:.0f} µs"
    promises.add(
        f"suffix: a draft {what}, median", f"≤ {1e6 * suffix.MOST_SECONDS:.0f} µs", seconds, found.draft <= suffix.MOST_SECONDS
    )
    promises.add(
        f"suffix: memory {what}",
        f"≤ {suffix.MOST_BYTES} bytes per token",
        f"{found.memory:.0f}",
        found.memory <= suffix.MOST_BYTES,
    )
    growth = found.last / found.first
    bound = f"≤ {suffix.MOST_GROWTH} × the first tenth's"
    promises.add(f"suffix: time per token {what}", bound, f"{growth:.2f}", growth <= suffix.MOST_GROWTH)


PARTS: dict[str, Callable[[Promises], None]] = {
    "outside": outside,
    "forwards": time_forwards,
    "batches": decode_batches,
    "contexts": contexts,
    "choosing": choosing,
    "memory": growth,
    "datastores": datastores,
    "servers": ask_servers,
    "suffix": count_suffixes,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; default: all")
    parts = parser.parse_args().parts or list(PARTS)
    if unknown := sorted(set(parts) - set(PARTS)):
        parser.error(f"{', '.join(unknown)}: no such part; expected some of {', '.join(PARTS)}")
    promises = Promises()
    for name in parts:
        PARTS[name](promises)
    widen_console()
    console.print(promises.table)


if __name__ == "__main__":
    main()
