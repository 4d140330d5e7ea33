"""Do the statistics hold their levels? Simulated runs with a known truth, through the functions that reports use.

    python -m benchmarks.simulation [--repetitions N] [--out FOLDER]

Measures the coverage of a speedup's 95 % interval, by skewness of the questions' log speedups; how often equal methods are ranked
apart; and how often `specbench compare` fails equal versions, or a method slowed by 5 % at the size that `specbench plan`
recommends after a pilot run. `as measured`: log speedups of the reference run, with their spread inside tasks.
"""

import argparse
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import log, sqrt
from pathlib import Path

import numpy as np
import pandas as pd
from rich.table import Table

from specbench import ROOT
from specbench.analysis import metrics
from specbench.analysis.loaded_run import read_run
from specbench.analysis.statistics import Array, mean_interval, rank_methods
from specbench.analysis.summary import format_csv
from specbench.cli.output import console
from specbench.compare.gate import PAIRED_SD, RUN_SD, estimate_change, estimate_paired_change, plan_paired_size, plan_size
from specbench.records.files import write_atomic
from specbench.records.trial import BASELINE

RUN = ROOT / "results" / "reference" / "cpu-mini-100m"
SPREAD = 0.3  # SD of the log speedup over questions
SHAPES = ((1, 4), (1, 6), (1, 10), (1, 20), (1, 80), (6, 2), (6, 4), (6, 8), (6, 80))  # tasks, questions of each
PILOT = 4  # questions per task
SLOWED, POWER, TASKS, RATIOS = 0.05, 0.95, 6, 3
NOISES = (0.01, 0.02, 0.03, 0.05, 0.1)
Draw = Callable[[np.random.Generator, tuple[int, int]], Array]


@dataclass(frozen=True)
class Row:
    """share: how often it happened; low, high: the bounds of that."""

    what: str
    share: float
    repetitions: int
    low: float
    high: float

    @property
    def kept(self) -> bool:
        return self.low <= self.share <= self.high


def read_log_speedups() -> Array:
    """Return log speedups of the reference run, centred per method and task, with the spread of one question."""
    ratios = metrics.compute_question_ratios(metrics.pair_with_baseline(metrics.build_question_frame(read_run(RUN).frame)))
    groups = ratios[ratios["method"] != BASELINE].groupby(["method", "task"])["log_speedup"]
    spread: pd.Series = groups.transform(lambda values: (values - values.mean()) * sqrt(len(values) / (len(values) - 1)))
    return spread.to_numpy(dtype=float) - spread.mean()


def list_draws() -> dict[str, Draw]:
    """Return distributions of log speedups over questions, with mean 0, by name."""
    measured = read_log_speedups()
    return {
        "as measured": lambda rng, size_: rng.choice(measured, size_),
        "normal": lambda rng, size_: rng.normal(0, SPREAD, size_),
        "skewed (gamma, skewness 1)": lambda rng, size_: SPREAD * (rng.gamma(4, 1 / 2, size_) - 2),
        "skewed (exponential, skewness 2)": lambda rng, size_: SPREAD * (rng.exponential(1, size_) - 1),
    }


def simulate_coverage(repetitions: int) -> Iterator[Row]:
    for name, draw in list_draws().items():
        for tasks, questions in SHAPES:
            rng = np.random.default_rng(0)
            intervals = (mean_interval(list(draw(rng, (tasks, questions))), seed=seed) for seed in range(repetitions))
            what = f"a 95 % interval holds the truth: {name}, {_many(tasks, 'task')} of {questions} questions"
            yield _build_row(what, (one.low <= 0 <= one.high for one in intervals), repetitions, 0.935, 0.965)


def simulate_ranks(repetitions: int) -> Iterator[Row]:
    """Rank methods that are equal on average, each with its own gains and losses on questions."""
    for methods in (2, 4, 12):
        for tasks, questions in ((1, 20), (6, 4), (6, 80)):
            rng = np.random.default_rng(1)
            what = f"equal methods are ranked apart: {methods} methods, {_many(tasks, 'task')} of {questions} questions"
            wrong = (_ranked_apart(rng, methods, tasks, questions) for _ in range(repetitions))
            yield _build_row(what, wrong, repetitions, 0, 0.05)


def _ranked_apart(rng: np.random.Generator, methods: int, tasks: int, questions: int) -> bool:
    level = rng.normal(0.5, SPREAD, (tasks, questions))
    rates = {str(method): list(level + rng.normal(0, SPREAD / 2, (tasks, questions))) for method in range(methods)}
    return any(limits != (1, methods) for limits in rank_methods(rates).values())


def simulate_gate(repetitions: int) -> Iterator[Row]:
    """noise: SD of a question's log ratio from run to run, or of its log ratio of two versions in one run."""
    for noise in NOISES:
        rng = np.random.default_rng(2)
        failed = (any(_fails(rng, noise, PILOT, 1, 0.0) for _ in range(RATIOS)) for _ in range(repetitions))
        yield _build_row(f"equal versions fail: noise {noise:.0%}, {RATIOS} ratios", failed, repetitions, 0, 0.01)
    for times in (1, 2):
        for noise in NOISES:
            rng = np.random.default_rng(4)
            failed = (any(_fails_paired(rng, noise, PILOT, 0.0, times) for _ in range(RATIOS)) for _ in range(repetitions))
            what = f"equal versions in one run fail: noise {noise:.0%}, {RATIOS} ratios, {times} × the assumed scatter"
            yield _build_row(what, failed, repetitions, 0, 0.01)
    for noise in NOISES:
        rng = np.random.default_rng(5)
        found = (_fails_paired(rng, noise, _plan_paired(rng, noise), -log(1 - SLOWED)) for _ in range(repetitions))
        yield _build_row(f"a 5 % slowdown in one run fails at the planned size: noise {noise:.0%}", found, repetitions, POWER, 1)
    for noise in NOISES:
        rng = np.random.default_rng(3)
        found = (_fails(rng, noise, *_plan(rng, noise), -log(1 - SLOWED)) for _ in range(repetitions))
        yield _build_row(f"a 5 % slowdown fails at the planned size: noise {noise:.0%}", found, repetitions, POWER, 1)


def _plan(rng: np.random.Generator, noise: float) -> tuple[int, int]:
    """Return questions per task and runs, planned from a pilot run that measured the noise."""
    needed = plan_size(sqrt(2) * _measure_noise(rng, noise), RATIOS, TASKS, SLOWED, POWER)
    return needed.questions // TASKS, needed.runs


def _plan_paired(rng: np.random.Generator, noise: float) -> int:
    needed = plan_paired_size(_measure_noise(rng, noise), RATIOS, TASKS, SLOWED, POWER)
    assert needed is not None, f"{SLOWED:.0%} is far beyond {PAIRED_SD}"
    return needed // TASKS


def _measure_noise(rng: np.random.Generator, noise: float) -> float:
    freedom = TASKS * PILOT
    return noise * sqrt(rng.chisquare(freedom) / freedom)


def _fails(rng: np.random.Generator, noise: float, questions: int, runs: int, slower: float) -> bool:
    index = pd.MultiIndex.from_product([range(TASKS), range(questions)], names=["task", "question_id"])
    level = rng.normal(0.5, SPREAD, (len(index), 1))
    sides = [
        pd.DataFrame(level - by + rng.normal(0, RUN_SD, runs) + rng.normal(0, noise, (len(index), runs)), index=index)
        for by in (0.0, slower)
    ]
    return estimate_change("a ratio", sides[0], sides[1], together=RATIOS).verdict == "fail"


def _fails_paired(rng: np.random.Generator, noise: float, questions: int, slower: float, times: float = 1) -> bool:
    """times: the true scatter between two processes, over the assumed one."""
    index = pd.MultiIndex.from_product([range(TASKS), range(questions)], names=["task", "question_id"])
    moved = -slower + rng.normal(0, times * PAIRED_SD) + rng.normal(0, noise, len(index))
    return estimate_paired_change("a ratio", pd.Series(moved, index=index), RATIOS).verdict == "fail"


def _build_row(what: str, happened: Iterable[bool], repetitions: int, low: float, high: float) -> Row:
    return Row(what, sum(happened) / repetitions, repetitions, low, high)


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count > 1)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=4_000)
    parser.add_argument("--out", type=Path, default=Path("reports/simulation"), metavar="FOLDER")
    options = parser.parse_args()
    table = Table("what", "how often", "bound", "kept")
    rows = []
    for row in (row for part in (simulate_coverage, simulate_ranks, simulate_gate) for row in part(options.repetitions)):
        rows.append(row)
        table.add_row(row.what, f"{row.share:.2%}", f"{row.low:.1%} to {row.high:.1%}", "yes" if row.kept else "[bold red]no[/]")
    console.print(table)
    write_atomic(options.out / "simulation.csv", format_csv(pd.DataFrame([{**vars(row), "kept": row.kept} for row in rows])))


if __name__ == "__main__":
    main()
