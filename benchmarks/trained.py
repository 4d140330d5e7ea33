"""The trained drafters of the embedded target: speedup and conversion over all six tasks, and where a step's time goes."""

from pathlib import Path

import pandas as pd

from specbench import metrics
from specbench.cli import console
from specbench.compose import composed
from specbench.metrics import OVERALL
from specbench.progress import ProgressDisplay
from specbench.report.loaded import load
from specbench.report.summary import summarise
from specbench.run import execute

METHODS = ("medusa", "hydra_heads", "eagle", "eagle2", "eagle3")


def overall(out: Path, *overrides: str) -> pd.DataFrame:
    """The rows of summary.csv over all tasks, by method."""
    summary = summarise(load(_run(out, f"method=[{','.join(METHODS)}]", *overrides)))
    return summary[summary["task"] == OVERALL].set_index("method")


def step(out: Path, label: str, *overrides: str) -> float:
    """What a whole step of a method costs, in steps of autoregressive decoding."""
    run = load(_run(out, f"method=[{label}]", "profile=true", "repeats=1", *overrides))
    return metrics.time_split(metrics.trial_frame(run.trials)).set_index("method").loc[label, "step"]


def _run(out: Path, *overrides: str) -> Path:
    config = composed([*overrides, "target=mini", "suite=mini", "check_baseline=false", f"out={out}"])
    with ProgressDisplay(console) as display:
        return execute(config, display)
