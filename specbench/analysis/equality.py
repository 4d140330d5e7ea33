"""Compare a method's output ids with autoregressive decoding's, or the texts where there are no ids."""

from __future__ import annotations

import pandas as pd

from specbench.analysis.metrics import CELL, add_overall
from specbench.records.trial import BASELINE

IDS, TEXT = "output_sha256", "text_sha256"


def compute_identical_share(trials: pd.DataFrame) -> pd.Series:
    """Return, by (method, task), the share of turns over all repeats whose output ids equal autoregressive's; see `compare`.

    A turn counts only if both had the same prompt: all with context = reference, some with context = own.
    """
    finished = trials[~trials["failed"].astype(bool)]
    turn = ["task", "question_id", "turn", "repeat"]
    baseline = finished.loc[finished["method"] == BASELINE, [*turn, "prompt_sha256", IDS, TEXT]]
    both = finished.merge(baseline, on=turn, suffixes=("", "_baseline"))
    both = both[(both["context"] == "reference") | (both["prompt_sha256"] == both["prompt_sha256_baseline"])]
    same = both.assign(identical=_compare(both)).dropna(subset=["identical"])
    shares: pd.Series = add_overall(same).groupby(CELL, sort=False)["identical"].mean()
    return shares


def _compare(both: pd.DataFrame) -> pd.Series:
    """Return 1.0 or 0.0: whether the ids are equal; the texts, where a side returned no ids; nan where neither is known."""
    found = pd.Series(float("nan"), index=both.index)
    for name in (TEXT, IDS):
        known = both[[name, f"{name}_baseline"]].notna().all(axis=1)
        found = (both[name] == both[f"{name}_baseline"]).astype(float).where(known, found)
    return found
