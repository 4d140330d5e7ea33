"""Which settings of a run are sizes of one method's tree, and which of them is the best."""

from __future__ import annotations

from collections import Counter

import pandas as pd

from specbench.metrics import OVERALL
from specbench.report.loaded import LoadedRun

LEAST = 3  # sizes of a method that make a figure


def tree_sizes(run: LoadedRun, summary: pd.DataFrame) -> pd.DataFrame:
    """A row per method of a dynamic tree, where a class has several: series, total_tokens, depth, and its overall speedup."""
    settings = run.config.get("method") or {}
    sized = {label: one for label, one in settings.items() if isinstance(one, dict) and {"total_tokens", "depth"} <= set(one)}
    classes = Counter(one["_target_"] for one in sized.values())
    chosen = [label for label, one in sized.items() if classes[one["_target_"]] >= LEAST]
    rows = summary[(summary["task"] == OVERALL) & summary["method"].isin(chosen)].dropna(subset=["speedup"])
    made = rows.assign(
        total_tokens=rows["method"].map(lambda label: sized[label]["total_tokens"]),
        depth=rows["method"].map(lambda label: sized[label]["depth"]),
        series=rows["method"].map(lambda label: f"{sized[label]['_target_'].rsplit('.', 1)[-1]}, depth {sized[label]['depth']}"),
    )
    return made.sort_values(["depth", "total_tokens"])


def best_size(sizes: pd.DataFrame) -> str:
    """The fastest of them in words."""
    row = sizes.sort_values("speedup").iloc[-1]
    interval = f"[{row['speedup_low']:.2f}, {row['speedup_high']:.2f}]"
    return (
        f"Speedup by tree size. The fastest here: {row['method']}, {row['total_tokens']} nodes and depth {row['depth']}, "
        f"{row['speedup']:.2f} {interval}."
    )
