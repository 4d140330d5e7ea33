"""When a change of speed is a regression: pure arithmetic on log ratios, no files.

What is compared is a ratio inside a run, such as a method's rate over autoregressive decoding's: absolute rates drift between
equal processes. The ratio of two such ratios varies over questions and, a little, from process to process; both are in its
interval.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace
from math import ceil, isnan, nan, pi
from typing import Literal

import numpy as np
import pandas as pd
from scipy import stats

from specbench.analysis.statistics import LEAST_STRATUM, Interval, stratified_mean

FAILS_BELOW = 0.99  # the whole interval of new / reference
PASSES_ABOVE = 0.97  # its lower limit
RUN_SD = 0.008  # of a ratio inside a run from process to process, in logarithms: what is believed beforehand
# The same of a method's rate over its own in another process, their turns next to each other. None was seen
# (docs/regression.md); at twice this equal versions still fail less than once in a hundred (python -m benchmarks.simulation).
BESIDE_SD = 0.004
RUN_SD_FREEDOM = 10  # both are believed as firmly as if they came from eleven runs
DECIDES = 0.8
MOST = 100_000  # questions of a task that are thought of
LEVEL = 0.98  # of all intervals of a comparison together, so that equal versions fail once in a hundred at most

Decision = Literal["fail", "pass", "undecided"]


@dataclass(frozen=True)
class SampleSize:
    """What would decide a comparison. questions: in each run; runs: of each side, where questions alone do not help."""

    questions: int
    runs: int


@dataclass(frozen=True)
class Change:
    """new / reference of one ratio inside a run, such as `pld over autoregressive`.

    over_questions: variance of its logarithm that questions explain, nan where a task has one.
    """

    what: str
    questions: int
    ratio: Interval
    over_questions: float = nan
    needed: SampleSize | None = None

    @property
    def verdict(self) -> Decision:
        if self.ratio.high < FAILS_BELOW:
            return "fail"
        return "pass" if self.ratio.low > PASSES_ABOVE else "undecided"


def estimate_change(what: str, reference: pd.DataFrame, new: pd.DataFrame, together: int) -> Change:
    """Of stored runs: log ratios by (task, question_id), a column a run; of several runs of a side the median counts.

    together: comparisons that share LEVEL (Bonferroni). Tasks weigh the same.
    """
    between, known = _estimate_run_variance(reference, new)
    runs = min(reference.shape[1], new.shape[1])
    over_runs = between * (_median_variance(reference.shape[1]) + _median_variance(new.shape[1]))
    found, allowed = _judge(what, (new.median(axis=1) - reference.median(axis=1)).dropna(), over_runs, known, together)
    if found.verdict != "undecided" or isnan(found.over_questions):
        return found
    while 2 * between * _median_variance(runs) > allowed / 2:
        runs += 1
    left = allowed - 2 * between * _median_variance(runs)
    return replace(found, needed=SampleSize(max(1, ceil(found.questions * found.over_questions / left)), runs))


def estimate_paired_change(what: str, moved: pd.Series, together: int) -> Change:
    """Of two versions in one run: log(new / reference) by (task, question_id)."""
    found, allowed = _judge(what, moved.dropna(), BESIDE_SD**2, RUN_SD_FREEDOM, together)
    left = allowed - BESIDE_SD**2
    if found.verdict != "undecided" or isnan(found.over_questions) or left <= 0:
        return found
    return replace(found, needed=SampleSize(max(1, ceil(found.questions * found.over_questions / left)), 1))


def _judge(what: str, moved: pd.Series, over_runs: float, known: float, together: int) -> tuple[Change, float]:
    """The change, and the variance with which it would be decided with a chance of DECIDES, if what is estimated were so.

    What seems faster is taken for equal there.
    over_runs: variance from process to process, with `known` degrees of freedom.
    """
    strata = [values.to_numpy(dtype=float) for _, values in moved.groupby(level="task")]
    mean, over_questions, freedom = stratified_mean(strata)
    if np.isnan(over_questions):
        return Change(what, len(moved), Interval(float(np.exp(mean)), np.nan, np.nan)), nan
    error2 = over_questions + over_runs
    freedom = error2**2 / (over_questions**2 / freedom + over_runs**2 / known)
    reach = _reach(together, freedom)
    ratio = Interval(*(float(np.exp(mean + side * reach * np.sqrt(error2))) for side in (0, -1, 1)))
    away = max(min(mean, 0.0) - float(np.log(PASSES_ABOVE)), float(np.log(FAILS_BELOW)) - mean)
    wanted = (away / (_reach(together, np.inf) + float(stats.norm.ppf(DECIDES)))) ** 2
    return Change(what, len(moved), ratio, over_questions), wanted


def plan_size(over_questions: float, together: int, tasks: int, effect: float, power: float) -> SampleSize:
    """What finds a slowdown by the share `effect` between stored runs with this power.

    over_questions: SD over questions of log(new / reference), one run of each.
    """
    runs = 1
    while (
        2 * RUN_SD**2 * _median_variance(runs) > _allowed_variance(RUN_SD_FREEDOM + 2 * (runs - 1), together, effect, power) / 2
    ):
        runs += 1
    known = RUN_SD_FREEDOM + 2 * (runs - 1)
    return SampleSize(
        _plan_questions(over_questions, 2 * RUN_SD**2 * _median_variance(runs), known, together, tasks, effect, power), runs
    )


def plan_paired_size(over_questions: float, together: int, tasks: int, effect: float, power: float) -> int | None:
    """Questions that find it between two versions in one run; None: one run cannot."""
    if _allowed_variance(RUN_SD_FREEDOM, together, effect, power) <= BESIDE_SD**2:
        return None
    return _plan_questions(over_questions, BESIDE_SD**2, RUN_SD_FREEDOM, together, tasks, effect, power)


def _plan_questions(
    over_questions: float, over_runs: float, known: float, together: int, tasks: int, effect: float, power: float
) -> int:
    """The fewest, as many of each task; of fewer than LEAST_STRATUM the interval is too uncertain to plan with."""

    def enough(each: int) -> bool:
        allowed = _allowed_variance(min(tasks * (each - 1), known), together, effect, power)
        return over_questions**2 / (tasks * each) + over_runs <= allowed

    return tasks * (LEAST_STRATUM + bisect_left(range(LEAST_STRATUM, MOST), True, key=enough))


def _allowed_variance(freedom: float, together: int, effect: float, power: float) -> float:
    """Variance with which a slowdown by `effect` is found with this power."""
    away = float(np.log(FAILS_BELOW / (1 - effect)))
    return (away / (_reach(together, freedom) + float(stats.norm.ppf(power)))) ** 2


def _reach(together: int, freedom: float) -> float:
    """Half the width of an interval, in standard errors."""
    return float(stats.t.ppf(1 - (1 - LEVEL) / 2 / together, freedom))


def _median_variance(runs: int) -> float:
    """Variance of the median of so many runs, in that of one: pi / 2 of the mean's where there are many."""
    return (pi / 2 if runs > 2 else 1) / runs


def _estimate_run_variance(reference: pd.DataFrame, new: pd.DataFrame) -> tuple[float, float]:
    """Variance of a ratio from run to run, what is believed and what is seen put together; and its degrees of freedom."""
    sides = [side.mean(axis=0).to_numpy(dtype=float) for side in (reference, new)]
    seen = sum(float(((means - means.mean()) ** 2).sum()) for means in sides)
    freedom = RUN_SD_FREEDOM + sum(len(means) - 1 for means in sides)
    return (RUN_SD_FREEDOM * RUN_SD**2 + seen) / freedom, freedom
