"""The suffix automaton's time per token while a text grows to 100,000 tokens: flat where updates cost amortised constant time.

    python -m benchmarks.automaton [--tokens N] [--out DIR]

Writes automaton.csv and automaton.png: microseconds per token, mean of each thousand, and the transitions that the automaton has
by then per token: its work, at most three for any text (Blumer et al. 1985). The time grows with missed caches.
"""

import argparse
import gc
import random
from pathlib import Path
from time import perf_counter

import pandas as pd
from matplotlib.figure import Figure

from methods.suffix_automaton import SuffixAutomaton
from specbench import ROOT
from specbench.datastore.store import Datastore
from specbench.records.files import write_atomic
from specbench.report import figures
from specbench.report.palette import PALETTE

TOKENS, PART = 100_000, 1_000


def texts(tokens: int) -> dict[str, list[int]]:
    """Of natural repetition, of none, and of nothing else."""
    rng = random.Random(0)
    motif = [rng.randrange(1_000) for _ in range(200)]
    store = Datastore.open(str(ROOT / "specbench/zoo/datastore"))
    return {
        "the embedded suite's dialogues": store.chunks[0].ids[:tokens].tolist(),
        "random, 30,000 different tokens": [rng.randrange(30_000) for _ in range(tokens)],
        "200 tokens over and over, one in 50 changed": [
            motif[at % 200] if rng.random() > 0.02 else rng.randrange(1_000) for at in range(tokens)
        ],
    }


def grown(text: list[int]) -> pd.DataFrame:
    """A row per part: time_us, and transitions, both per token. Python's garbage collector, which would look through all states
    again and again, does not run."""
    automaton, rows = SuffixAutomaton(recent=True), []
    gc.disable()
    for start in range(0, len(text), PART):
        begun = perf_counter()
        automaton.extend(text[start : start + PART])
        seconds = perf_counter() - begun
        rows.append((1e6 * seconds / PART, automaton.transitions / len(automaton.tokens)))
    gc.enable()
    return pd.DataFrame(rows, columns=["time_us", "transitions"])


def drawn(found: pd.DataFrame) -> Figure:
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True)
    for (name, rows), colour in zip(found.groupby("text", sort=False), PALETTE, strict=False):
        left.plot(rows["tokens"], rows["time_us"], color=colour, linewidth=1.6, label=name)
        right.plot(rows["tokens"], rows["transitions"], color=colour, linewidth=1.6)
    left.set_ylabel("µs per token, mean of 1,000")
    left.set_title("Suffix automaton: time of an update")
    right.set_ylabel("transitions per token so far")
    right.set_title("Its work")
    for axes in (left, right):
        axes.set_ylim(bottom=0, top=1.25 * axes.get_ylim()[1])
        axes.set_xlabel("tokens in the automaton")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--out", type=Path, default=Path("reports/automaton"))
    options = parser.parse_args()
    parts = [grown(text).assign(text=name) for name, text in texts(options.tokens).items()]
    found = pd.concat(part.assign(tokens=PART * (part.index + 1)) for part in parts)
    options.out.mkdir(parents=True, exist_ok=True)
    write_atomic(options.out / "automaton.csv", found.to_csv(index=False, float_format="%.3f"))
    with figures.drawing():
        figures.save(drawn(found), options.out / "automaton")
    print(found.groupby("text", sort=False)[["time_us", "transitions"]].agg(["first", "last"]))


if __name__ == "__main__":
    main()
