"""How published speedups of a method changed over time, and how measured ones differ from them.

speedup = mean accepted tokens × conversion, so the logarithm of a ratio of speedups is the sum of acceptance and cost.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from specbench.paper.items import shorten_device
from specbench.paper.published import LEADERBOARD, SURVEY, read_published
from specbench.records.trial import OVERALL

KEY = ["device", "target", "method"]


def tabulate_by_day() -> pd.DataFrame:
    """Return overall speedups by device, target and method, one column per day: the survey's, then the leaderboard's."""
    rows = read_published()
    rows = rows[rows["source"].str.startswith((LEADERBOARD, SURVEY)) & (rows["task"] == OVERALL) & (rows["metric"] == "speedup")]
    rows = rows[(rows["temperature"] == 0) & (rows["dtype"] == "float16")]
    first = rows["item"].str.extract(r"first \w+ (\d{4}-\d{2}-\d{2})")[0].fillna("2024-02-25")
    rows = rows.assign(day=first, device=rows["device"].map(shorten_device))
    wide = rows.pivot_table(index=KEY, columns="day", values="value", aggfunc="last")
    return wide[wide.notna().sum(axis=1) > 1]


def collect_acceptance() -> pd.Series:
    """Return the largest published overall mean accepted tokens by (target, method); greedy, so the device does not matter."""
    rows = read_published()
    overall = rows["source"].str.startswith(LEADERBOARD) & (rows["task"] == OVERALL)
    rows = rows[overall & (rows["metric"] == "mean_accepted_tokens")]
    largest: pd.Series = rows.groupby(["target", "method"])["value"].max()
    return largest


def find_too_fast(speedups: pd.DataFrame) -> pd.DataFrame:
    """Return published speedups above their mean accepted tokens, where the baseline ran slower code than the method."""
    tokens = collect_acceptance().rename("mean_accepted_tokens")
    long = speedups.reset_index().melt(KEY, var_name="day", value_name="speedup").dropna().join(tokens, on=["target", "method"])
    return long[long["speedup"] > long["mean_accepted_tokens"]].reset_index(drop=True)


def split_difference(published_rows: pd.DataFrame, measured_rows: pd.DataFrame) -> pd.DataFrame:
    """Return both speedups by target, method and task, and their ratio as factors: whole = acceptance × cost."""
    keys = ["target", "method", "task"]
    columns = [*keys, "device", "speedup", "mean_accepted_tokens"]
    both = published_rows[columns].merge(measured_rows[columns], on=keys, suffixes=("_published", "_measured"))
    accepted = both["mean_accepted_tokens_measured"] / both["mean_accepted_tokens_published"]
    whole = both["speedup_measured"] / both["speedup_published"]
    return both.assign(whole=whole, acceptance=accepted, cost=np.exp(np.log(whole) - np.log(accepted)))
