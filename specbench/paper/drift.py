"""How published speedups of one method moved over time, and how measured ones differ: the part of acceptance, the part of cost.

speedup = mean accepted tokens × conversion, so that on the scale of logarithms a difference splits into the two.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from specbench.analysis.metrics import OVERALL
from specbench.paper.items import shorten_device
from specbench.paper.published import LEADERBOARD, SURVEY, read_published

KEY = ["device", "target", "method"]


def tabulate_by_day() -> pd.DataFrame:
    """Overall speedups by device, target and method, a column a day: the survey's of February 2024, then the leaderboard's."""
    rows = read_published()
    rows = rows[rows["source"].str.startswith((LEADERBOARD, SURVEY)) & (rows["task"] == OVERALL) & (rows["metric"] == "speedup")]
    rows = rows[(rows["temperature"] == 0) & (rows["dtype"] == "float16")]
    first = rows["item"].str.extract(r"first \w+ (\d{4}-\d{2}-\d{2})")[0].fillna("2024-02-25")
    rows = rows.assign(day=first, device=rows["device"].map(shorten_device))
    wide = rows.pivot_table(index=KEY, columns="day", values="value", aggfunc="last")
    return wide[wide.notna().sum(axis=1) > 1]


def collect_acceptance() -> pd.Series:
    """By (target, method): mean accepted tokens overall, the most that were published; greedy, so the device is no matter."""
    rows = read_published()
    rows = rows[
        rows["source"].str.startswith(LEADERBOARD) & (rows["task"] == OVERALL) & (rows["metric"] == "mean_accepted_tokens")
    ]
    most: pd.Series = rows.groupby(["target", "method"])["value"].max()
    return most


def find_too_fast(speedups: pd.DataFrame) -> pd.DataFrame:
    """Published overall speedups above their mean accepted tokens: there the baseline ran slower code than the method."""
    tokens = collect_acceptance().rename("mean_accepted_tokens")
    long = speedups.reset_index().melt(KEY, var_name="day", value_name="speedup").dropna().join(tokens, on=["target", "method"])
    return long[long["speedup"] > long["mean_accepted_tokens"]].reset_index(drop=True)


def split_difference(published_rows: pd.DataFrame, measured_rows: pd.DataFrame) -> pd.DataFrame:
    """By target, method and task: both speedups, and what the difference comes from, as factors: acceptance × cost = all."""
    keys = ["target", "method", "task"]
    columns = [*keys, "device", "speedup", "mean_accepted_tokens"]
    both = published_rows[columns].merge(measured_rows[columns], on=keys, suffixes=("_published", "_measured"))
    accepted = both["mean_accepted_tokens_measured"] / both["mean_accepted_tokens_published"]
    whole = both["speedup_measured"] / both["speedup_published"]
    return both.assign(whole=whole, acceptance=accepted, cost=np.exp(np.log(whole) - np.log(accepted)))
