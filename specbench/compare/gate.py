"""Decide whether a change of speed is a regression: pure arithmetic on log ratios, without files.

Compared are ratios inside a run, such as a method's rate over autoregressive decoding's, because absolute rates drift between
equal processes. The ratio of two such ratios varies over questions and, a little, from process to process; its interval includes
both. baseline.py judges the absolute rate of autoregressive decoding by the same rule, with the drift in place of the latter.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace
from itertools import count
from math import ceil, isnan, nan, pi
from typing import Literal

import numpy as np
import pandas as pd
from scipy import stats

from specbench.analysis.statistics import LEAST_STRATUM, Interval, stratified_mean

FAILS_BELOW = 0.99  # the whole interval of new / reference
PASSES_ABOVE = 0.97  # its lower limit
RUN_SD = 0.008  # prior SD of a log ratio inside a run, from process to process
# Prior SD of the log of a method's rate over its own in another process of the same run. No such spread was seen
# (docs/regression.md); at twice this SD equal versions still fail less than once in a hundred (python -m benchmarks.simulation).
PAIRED_SD = 0.004
RUN_SD_FREEDOM = 10  # degrees of freedom of both priors, as if they came from eleven runs
DECIDES = 0.8  # probability with which the suggested size decides
MOST = 100_000  # questions per task that are considered
LEVEL = 0.98  # of all intervals of a comparison together: equal versions fail at most once in a hundred

Decision = Literal["fail", "pass", "undecided"]


@dataclass(frozen=True)
class SampleSize:
    """A size that would decide a comparison. questions: in each run; runs: of each side, if questions alone do not suffice."""

    questions: int
    runs: int


@dataclass(frozen=True)
class Change:
    """new / reference of one ratio inside a run, such as `pld over autoregressive`.

    over_questions: variance of its logarithm over questions, nan where a task has one question. chance: that equal versions look
    at least as slow. confirmed: other evidence shows the slowdown, too, and both together suffice to fail.
    """

    what: str
    questions: int
    ratio: Interval
    over_questions: float = nan
    chance: float = nan
    needed: SampleSize | None = None
    confirmed: bool = False

    @property
    def verdict(self) -> Decision:
        if self.ratio.high < FAILS_BELOW or self.confirmed:
            return "fail"
        return "pass" if self.ratio.low > PASSES_ABOVE else "undecided"


@dataclass(frozen=True)
class Spread:
    """Variance of the logarithm of one run's ratio from process to process, and its degrees of freedom."""

    variance: float
    freedom: float


def estimate_change(what: str, reference: pd.DataFrame, new: pd.DataFrame, together: int, spread: Spread | None = None) -> Change:
    """Compare stored runs: log ratios by (task, question_id), one column per run; several runs of a side count by their median.

    together: comparisons that share LEVEL (Bonferroni). spread: by default that of ratios inside a run. Tasks weigh the same.
    """
    spread = spread or _estimate_spread(reference, new)
    between, known = spread.variance, spread.freedom
    runs = min(reference.shape[1], new.shape[1])
    over_runs = between * (_median_variance(reference.shape[1]) + _median_variance(new.shape[1]))
    moved = (new.median(axis=1) - reference.median(axis=1)).dropna()
    change, allowed = _judge(what, moved, over_runs, known, together)
    if change.verdict != "undecided" or isnan(change.over_questions):
        return change
    while 2 * between * _median_variance(runs) > allowed / 2:
        runs += 1
    return _suggest_size(change, allowed - 2 * between * _median_variance(runs), runs)


def estimate_paired_change(what: str, moved: pd.Series, together: int) -> Change:
    """Compare two versions in one run. moved: log(new / reference) by (task, question_id)."""
    change, allowed = _judge(what, moved.dropna(), PAIRED_SD**2, RUN_SD_FREEDOM, together)
    if change.verdict != "undecided" or isnan(change.over_questions) or allowed <= PAIRED_SD**2:
        return change
    return _suggest_size(change, allowed - PAIRED_SD**2, 1)


def _suggest_size(change: Change, variance: float, runs: int) -> Change:
    """Add the size with which questions contribute no more than this variance."""
    return replace(change, needed=SampleSize(max(1, ceil(change.questions * change.over_questions / variance)), runs))


def _judge(what: str, moved: pd.Series, over_runs: float, known: float, together: int) -> tuple[Change, float]:
    """Return the change, and the variance at which it would be decided with probability DECIDES if the estimate were true.

    An estimate above 1 counts as 1 there. over_runs: variance from process to process, with `known` degrees of freedom.
    """
    strata = [values.to_numpy(dtype=float) for _, values in moved.groupby(level="task")]
    mean, over_questions, freedom = stratified_mean(strata)
    if np.isnan(over_questions):
        return Change(what, len(moved), Interval(float(np.exp(mean)), np.nan, np.nan)), nan
    error2 = over_questions + over_runs
    freedom = error2**2 / (over_questions**2 / freedom + over_runs**2 / known) if error2 else known
    reach = _reach(together, freedom)
    error = float(np.sqrt(error2))
    ratio = Interval(*(float(np.exp(mean + side * reach * error)) for side in (0, -1, 1)))
    chance = float(stats.t.cdf(mean / error, freedom)) if error else float(mean >= 0)
    away = max(min(mean, 0.0) - float(np.log(PASSES_ABOVE)), float(np.log(FAILS_BELOW)) - mean)
    allowed = (away / (_reach(together, np.inf) + float(stats.norm.ppf(DECIDES)))) ** 2
    return Change(what, len(moved), ratio, over_questions, chance), allowed


def find_smallest(over_questions: float, reference: int, new: int, together: int, spread: Spread | None = None) -> float:
    """Return the smallest slowdown, as a share, that fails with probability DECIDES, given the number of runs of each side.

    over_questions: variance of the change's logarithm over questions; spread: by default the prior of ratios inside a run.
    """
    spread = spread or Spread(RUN_SD**2, RUN_SD_FREEDOM + reference + new - 2)
    over_runs = spread.variance * (_median_variance(reference) + _median_variance(new))
    return 1 - FAILS_BELOW * float(np.exp(-_span(over_questions + over_runs, together, spread.freedom)))


def find_smallest_paired(over_questions: float, together: int) -> float:
    """Return the smallest slowdown that fails with probability DECIDES between two versions in one run."""
    return 1 - FAILS_BELOW * float(np.exp(-_span(over_questions + PAIRED_SD**2, together, RUN_SD_FREEDOM)))


def find_passing_runs(over_questions: float, together: int, most: int) -> int | None:
    """Return the runs of each side with which equal versions pass with probability DECIDES, None if `most` do not suffice."""
    for runs in range(1, most + 1):
        over_runs = 2 * RUN_SD**2 * _median_variance(runs)
        if _span(over_questions + over_runs, together, RUN_SD_FREEDOM + 2 * (runs - 1)) <= -float(np.log(PASSES_ABOVE)):
            return runs
    return None


def _span(variance: float, together: int, freedom: float) -> float:
    """Return how far from a limit the expected log estimate must be, so that it is decided with probability DECIDES."""
    return (_reach(together, freedom) + float(stats.norm.ppf(DECIDES))) * float(np.sqrt(variance))


def plan_size(over_questions: float, together: int, tasks: int, effect: float, power: float) -> SampleSize:
    """Return the size that finds a slowdown by the share `effect` between stored runs with this power.

    over_questions: SD over questions of log(new / reference), one run of each.
    """
    for runs in count(1):
        known = RUN_SD_FREEDOM + 2 * (runs - 1)
        over_runs = 2 * RUN_SD**2 * _median_variance(runs)
        if over_runs <= _allowed_variance(known, together, effect, power) / 2:
            break
    return SampleSize(_plan_questions(over_questions, over_runs, known, together, tasks, effect, power), runs)


def plan_paired_size(over_questions: float, together: int, tasks: int, effect: float, power: float) -> int | None:
    """Return the questions that find it between two versions in one run, or None if one run cannot."""
    if _allowed_variance(RUN_SD_FREEDOM, together, effect, power) <= PAIRED_SD**2:
        return None
    return _plan_questions(over_questions, PAIRED_SD**2, RUN_SD_FREEDOM, together, tasks, effect, power)


def _plan_questions(
    over_questions: float, over_runs: float, known: float, together: int, tasks: int, effect: float, power: float
) -> int:
    """Return the fewest questions, equally many per task, at least LEAST_STRATUM; below it the interval is too uncertain."""

    def enough(each: int) -> bool:
        allowed = _allowed_variance(min(tasks * (each - 1), known), together, effect, power)
        return over_questions**2 / (tasks * each) + over_runs <= allowed

    return tasks * (LEAST_STRATUM + bisect_left(range(LEAST_STRATUM, MOST), True, key=enough))


def _allowed_variance(freedom: float, together: int, effect: float, power: float) -> float:
    """Return the variance at which a slowdown by `effect` is found with this power."""
    away = float(np.log(FAILS_BELOW / (1 - effect)))
    return (away / (_reach(together, freedom) + float(stats.norm.ppf(power)))) ** 2


def _reach(together: int, freedom: float) -> float:
    """Return half the width of an interval, in standard errors."""
    return float(stats.t.ppf(1 - (1 - LEVEL) / 2 / together, freedom))


def _median_variance(runs: int) -> float:
    """Return the variance of the median of `runs` runs over that of one run: pi / 2 of the mean's for many runs."""
    return (pi / 2 if runs > 2 else 1) / runs


def _estimate_spread(reference: pd.DataFrame, new: pd.DataFrame) -> Spread:
    """Return the spread of a ratio inside a run, prior and data pooled."""
    prior, seen = Spread(RUN_SD**2, RUN_SD_FREEDOM), measure_spread(reference, new)
    if not seen.freedom:
        return prior
    freedom = prior.freedom + seen.freedom
    return Spread((prior.freedom * prior.variance + seen.freedom * seen.variance) / freedom, freedom)


def measure_spread(*sides: pd.DataFrame) -> Spread:
    """Return how the runs of each side scatter around its mean; no degree of freedom where each side has one run."""
    means = [side.mean(axis=0).to_numpy(dtype=float) for side in sides]
    freedom = sum(len(values) - 1 for values in means)
    squares = sum(float(((values - values.mean()) ** 2).sum()) for values in means)
    return Spread(squares / freedom if freedom else nan, freedom)
