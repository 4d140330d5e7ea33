"""The suffix automaton's time per token while a text grows to 100,000 tokens: flat where updates cost amortised constant time.

    python -m benchmarks.automaton [--tokens N] [--out DIR]

Writes automaton.csv (microseconds per token, mean of each thousand) and automaton.png; prints the last tenth's mean over the first's.
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
from specbench.records import write_atomic
from specbench.report import figures

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


def timed(text: list[int]) -> list[float]:
    """Microseconds per token in each part, without Python's garbage collector, which would look through all states again."""
    automaton, found = SuffixAutomaton(recent=True), []
    gc.disable()
    for start in range(0, len(text), PART):
        begun = perf_counter()
        automaton.extend(text[start : start + PART])
        found.append(1e6 * (perf_counter() - begun) / PART)
    gc.enable()
    return found


def drawn(times: pd.DataFrame) -> Figure:
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, colour in zip(times.columns, figures.OKABE_ITO, strict=False):
        axes.plot(times.index, times[name], color=colour, linewidth=1.6, label=name)
    axes.set_ylim(bottom=0, top=2.5 * float(times.median().max()))
    axes.set_xlabel("tokens in the automaton")
    axes.set_ylabel("µs per token, mean of 1,000")
    axes.set_title("Suffix automaton: time of an update")
    axes.legend()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--out", type=Path, default=Path("reports/automaton"))
    options = parser.parse_args()
    found = {name: timed(text) for name, text in texts(options.tokens).items()}
    times = pd.DataFrame(found, index=pd.RangeIndex(PART, options.tokens + 1, PART, name="tokens"))
    options.out.mkdir(parents=True, exist_ok=True)
    write_atomic(options.out / "automaton.csv", times.to_csv(float_format="%.3f"))
    with figures.drawing():
        figures.save(drawn(times), options.out / "automaton")
    tenth = len(times) // 10
    for name in times:
        print(f"{name}: {times[name][-tenth:].mean() / times[name][:tenth].mean():.2f}")


if __name__ == "__main__":
    main()
