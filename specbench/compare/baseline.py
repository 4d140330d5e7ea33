"""Whether autoregressive decoding itself is slower than in the reference's processes: a slower baseline raises every speedup.

Rates of equal processes drift, on a shared machine by an SD of 3 %: ten equal processes spanned 11 %. The methods of the same run
drift with the baseline. So it fails alone where it is slower beyond the drift, and within the drift where it is also slower over
the methods, whose own rates say that they have not become faster.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pandas as pd

from specbench.compare.gate import LEVEL, Change, Spread, estimate_change, find_smallest, measure_spread

DRIFT_SD = 0.03  # of the log of a process's rate, as ten equal processes showed; docs/regression.md
KNOWN = 1e6  # degrees of freedom of an SD that is taken as known
SHARE = 2  # the baseline fails by chance half as often as LEVEL allows all ratios: an own level, whatever their number
ALONE = 1 - (1 - LEVEL) / SHARE  # confidence of the baseline's interval
SEVERAL = 4  # runs of a reference that show their own drift
CONFIRMS = 0.05  # chance of such a rate among equal processes below which a slowdown over the methods is the baseline's
RATE = "autoregressive's own rate"


@dataclass(frozen=True)
class Drift:
    """How rates drift from process to process. source: who says so."""

    spread: Spread
    source: str


def estimate_drift(reference: pd.DataFrame, new: pd.DataFrame) -> Drift:
    """Return the drift that the reference's runs show, the documented one of fewer than SEVERAL. Sides: as in judge_baseline."""
    runs = reference.shape[1]
    if runs < SEVERAL:
        documented = Spread(DRIFT_SD**2, KNOWN)
        return Drift(documented, f"SD {DRIFT_SD:.1%} as documented; {SEVERAL} runs of a reference would show their own")
    spread = measure_spread(reference, new)
    return Drift(spread, f"SD {spread.variance**0.5:.1%} as the {runs} runs of the reference show")


def judge_baseline(reference: pd.DataFrame, new: pd.DataFrame, over_methods: Change | None, drift: Drift) -> Change:
    """Compare log rates by (task, question_id), one column per run. over_methods: of the same rate over the methods' mean."""
    alone = estimate_change(RATE, reference, new, SHARE, drift.spread)
    slower_too = over_methods is not None and over_methods.verdict == "fail"
    return replace(alone, confirmed=slower_too and alone.chance < CONFIRMS)


def find_smallest_drop(over_questions: float, reference: int, new: int, drift: Drift) -> float:
    """Return the smallest slowdown of the baseline's own rate that so many runs find; arguments as in find_smallest."""
    return find_smallest(over_questions, reference, new, SHARE, drift.spread)
