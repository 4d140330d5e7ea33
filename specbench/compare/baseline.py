"""Check whether autoregressive decoding itself became slower than in the reference: a slower baseline raises every speedup.

Rates of equal processes drift, on a shared machine by an SD of 3 %: ten equal processes spanned 11 %. The methods of the same run
drift with the baseline. So the baseline fails by itself if it is slower by more than the drift, and within the drift if it is
also slower over the methods, while their own rates show that they have not become faster.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pandas as pd

from specbench.compare.gate import LEVEL, Change, Spread, estimate_change, find_smallest, measure_spread

DRIFT_SD = 0.03  # of the log of a process's rate, as ten equal processes showed; docs/regression.md
KNOWN = 1e6  # degrees of freedom of an SD that is taken as known
SHARE = 2  # the baseline may fail by chance half as often as LEVEL allows for all ratios together, however many these are
ALONE = 1 - (1 - LEVEL) / SHARE  # confidence of the baseline's interval
SEVERAL = 4  # runs of a reference that show their own drift
CONFIRMS = 0.05  # chance of such a rate among equal processes below which a slowdown over the methods is the baseline's
RATE = "autoregressive's own rate"


@dataclass(frozen=True)
class Drift:
    """How rates drift from process to process. source: where the figures come from."""

    spread: Spread
    source: str


def estimate_drift(reference: pd.DataFrame, new: pd.DataFrame) -> Drift:
    """Return the drift that the reference's runs show; with fewer than SEVERAL runs, the documented one.

    Sides: as in judge_baseline.
    """
    runs = reference.shape[1]
    if runs < SEVERAL:
        documented = Spread(DRIFT_SD**2, KNOWN)
        return Drift(documented, f"SD {DRIFT_SD:.1%} as documented; a reference of {SEVERAL} runs would show its own")
    spread = measure_spread(reference, new)
    return Drift(spread, f"SD {spread.variance**0.5:.1%} as the {runs} runs of the reference show")


def judge_baseline(reference: pd.DataFrame, new: pd.DataFrame, over_methods: Change | None, drift: Drift) -> Change:
    """Compare log rates by (task, question_id), one column per run. over_methods: of the same rate over the methods' mean."""
    alone = estimate_change(RATE, reference, new, SHARE, drift.spread)
    slower_too = over_methods is not None and over_methods.verdict == "fail"
    return replace(alone, confirmed=slower_too and alone.chance < CONFIRMS)


def find_smallest_drop(over_questions: float, reference: int, new: int, drift: Drift) -> float:
    """Return the smallest slowdown of the baseline's own rate that this many runs find; arguments as in find_smallest."""
    return find_smallest(over_questions, reference, new, SHARE, drift.spread)
