"""The trained drafters of the embedded target: speedup and conversion over all six tasks, and what a step costs."""

from pathlib import Path

import pandas as pd

from benchmarks import embedded
from specbench.analysis import metrics
from specbench.analysis.loaded_run import load
from specbench.analysis.metrics import OVERALL
from specbench.analysis.summary import summarise

METHODS = ("medusa", "hydra_heads", "eagle", "eagle2", "eagle3")


def overall(out: Path, *overrides: str) -> pd.DataFrame:
    """The rows of summary.csv over all tasks, by method."""
    summary = summarise(load(embedded.run(out, f"method=[{','.join(METHODS)}]", "check_baseline=false", *overrides)))
    return summary[summary["task"] == OVERALL].set_index("method")


def step(out: Path, label: str, *overrides: str) -> float:
    """What a whole step of a method costs, in steps of autoregressive decoding."""
    run = load(embedded.run(out, f"method=[{label}]", "profile=true", "repeats=1", "check_baseline=false", *overrides))
    return metrics.time_split(run.frame).set_index("method").loc[label, "step"]
