"""When a change of speed is a regression: pure arithmetic on log ratios, no files.

What is compared is a ratio inside a run, such as a method's rate over autoregressive decoding's: absolute rates drift between
equal processes. The ratio of two such ratios varies over questions and, a little, from process to process; both are in its
interval.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, nan
from typing import Literal

import numpy as np
import pandas as pd
from scipy import stats

from specbench.statistics import Interval, stratified_mean

FAILS_BELOW = 0.99  # the whole interval of new / reference
PASSES_ABOVE = 0.97  # its lower limit
RUN_SD = 0.008  # of a ratio inside a run from process to process, in logarithms: what is believed beforehand,
BESIDE_SD = 0.004  # the same of a method's rate over its own in another process, their turns next to each other: none was
# seen (docs/regression.md); at twice this equal versions still fail less than once in a hundred (python -m benchmarks.simulation)
RUN_SD_FREEDOM = 10  # as firmly as if it came from eleven runs
LEVEL = 0.98  # of all intervals of a comparison together, so that equal versions fail once in a hundred at most

Verdict = Literal["fail", "pass", "undecided"]


@dataclass(frozen=True)
class Needed:
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
    needed: Needed | None = None

    @property
    def verdict(self) -> Verdict:
        if self.ratio.high < FAILS_BELOW:
            return "fail"
        return "pass" if self.ratio.low > PASSES_ABOVE else "undecided"


def change(what: str, reference: pd.DataFrame, new: pd.DataFrame, together: int, run_sd: float = RUN_SD) -> Change:
    """Log ratios by (task, question_id), a column a run; of several runs of a side the median counts.

    together: comparisons that share LEVEL (Bonferroni). run_sd: see RUN_SD. Tasks weigh the same.
    """
    moved = (new.median(axis=1) - reference.median(axis=1)).dropna()
    strata = [values.to_numpy(dtype=float) for _, values in moved.groupby(level="task")]
    mean, over_questions, freedom = stratified_mean(strata)
    sides = 1 / reference.shape[1] + 1 / new.shape[1]
    between, known = _between_runs(reference, new, run_sd)
    over_runs = between * sides
    if np.isnan(over_questions):
        return Change(what, len(moved), Interval(float(np.exp(mean)), np.nan, np.nan))
    error2 = over_questions + over_runs
    freedom = error2**2 / (over_questions**2 / freedom + over_runs**2 / known)
    reach = float(stats.t.ppf(1 - (1 - LEVEL) / 2 / together, freedom))
    ratio = Interval(*(float(np.exp(mean + side * reach * np.sqrt(error2))) for side in (0, -1, 1)))
    found = Change(what, len(moved), ratio, over_questions)
    many = float(stats.norm.ppf(1 - (1 - LEVEL) / 2 / together))
    allowed = (float(np.log(FAILS_BELOW / PASSES_ABOVE)) / 2 / many) ** 2  # too narrow to hold both
    needed = _enough(len(moved) * over_questions, between, allowed, min(reference.shape[1], new.shape[1]))
    return replace(found, needed=needed) if found.verdict == "undecided" else found


def size(over_questions: float, together: int, tasks: int, effect: float, power: float, run_sd: float = RUN_SD) -> Needed:
    """What finds a slowdown by the share `effect` with this power. over_questions: SD of new / reference, one run of each."""
    found, away = Needed(2 * tasks, 1), float(np.log(FAILS_BELOW / (1 - effect)))
    for _ in range(4):  # quantiles depend on how many there are
        freedom = min(found.questions - tasks, RUN_SD_FREEDOM + 2 * (found.runs - 1))
        reach = float(stats.t.ppf(1 - (1 - LEVEL) / 2 / together, freedom) + stats.norm.ppf(power))
        more = _enough(over_questions**2, run_sd**2, (away / reach) ** 2)
        found = Needed(max(found.questions, more.questions), max(found.runs, more.runs))
    return found


def _enough(over_questions: float, between: float, allowed: float, runs: int = 1) -> Needed:
    """For a variance of at most `allowed`; where runs are many of it, more of them, until they are half of it.

    over_questions: variance over questions of new / reference; between: over runs of a ratio.
    """
    more = max(runs, ceil(4 * between / allowed)) if 2 * between / runs >= allowed / 2 else runs
    return Needed(ceil(over_questions / (allowed - 2 * between / more)), more)


def _between_runs(reference: pd.DataFrame, new: pd.DataFrame, run_sd: float) -> tuple[float, float]:
    """Variance of a ratio from run to run, what is believed and what is seen put together; and its degrees of freedom."""
    sides = [side.mean(axis=0).to_numpy(dtype=float) for side in (reference, new)]
    seen = sum(float(((means - means.mean()) ** 2).sum()) for means in sides)
    freedom = RUN_SD_FREEDOM + sum(len(means) - 1 for means in sides)
    return (RUN_SD_FREEDOM * run_sd**2 + seen) / freedom, freedom
