"""The rule of `specbench compare`: how often it errs by chance, and the sizes that keep its power."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from specbench.analysis.statistics import Interval
from specbench.compare.gate import RUN_SD, Change, estimate_change, plan_paired_size, plan_size


def simulated(rng: np.random.Generator, questions: int, noise: float, runs: int, slower: float = 0.0) -> pd.DataFrame:
    index = pd.MultiIndex.from_tuples([(at % 3, at) for at in range(questions)], names=["task", "question_id"])
    spread = np.linspace(-0.4, 0.4, questions)[:, None]
    return pd.DataFrame(spread - slower + rng.normal(0, RUN_SD, runs) + rng.normal(0, noise, (questions, runs)), index=index)


@pytest.mark.parametrize("noise", [0.01, 0.1])
def test_equal_versions_fail_at_most_once_in_a_hundred(noise: float) -> None:
    """All three ratios of a comparison together."""
    rng = np.random.default_rng(int(1000 * noise))
    failed = 0
    for _ in range(600):
        changes = [estimate_change("x", simulated(rng, 24, noise, 1), simulated(rng, 24, noise, 1), 3) for _ in range(3)]
        failed += any(one.verdict == "fail" for one in changes)
    assert failed <= 6


@pytest.mark.parametrize("tasks", [1, 3, 6])
def test_sizes_are_the_least_that_keep_the_power(tasks: int) -> None:
    """Of three ratios at a noise of 3 %: 5 % is found with a variance of (0.0412 / (2.7 + 1.64))^2 at most."""
    beside = plan_paired_size(0.03, 3, tasks, 0.05, 0.95)
    assert beside is not None and beside <= 24 and plan_paired_size(0.03, 3, tasks, 0.02, 0.95) is None
    stored = plan_size(0.03, 3, tasks, 0.05, 0.95)
    assert stored.runs <= 6 and stored.questions <= 60


@pytest.mark.parametrize("noise", [0.01, 0.05])
def test_a_slowdown_is_found_at_the_size_that_was_planned(noise: float) -> None:
    needed = plan_size(math.sqrt(2) * noise, 3, 3, 0.05, 0.95)
    rng = np.random.default_rng(0)
    slower = -math.log(0.95)
    found = [
        estimate_change(
            "x",
            simulated(rng, needed.questions, noise, needed.runs),
            simulated(rng, needed.questions, noise, needed.runs, slower),
            3,
        )
        for _ in range(400)
    ]
    assert sum(one.verdict == "fail" for one in found) >= 0.93 * 400, needed


def test_an_undecided_comparison_says_what_would_decide_it() -> None:
    rng = np.random.default_rng(1)
    change = estimate_change("x", simulated(rng, 12, 0.1, 1), simulated(rng, 12, 0.1, 1), 3)
    needed = change.needed
    assert change.verdict == "undecided" and needed is not None and needed.questions > 12
    verdicts = []
    for _ in range(50):
        old, new = (simulated(rng, needed.questions, 0.1, needed.runs) for _ in range(2))
        verdicts.append(estimate_change("x", old, new, 3).verdict)
    assert verdicts.count("undecided") < 25


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(0.9, 0.98, "fail"), (0.975, 1.2, "pass"), (0.96, 1.0, "undecided"), (0.975, 0.985, "fail")]
)
def test_the_rule(low: float, high: float, verdict: str) -> None:
    assert Change("x", 1, Interval(math.sqrt(low * high), low, high)).verdict == verdict
