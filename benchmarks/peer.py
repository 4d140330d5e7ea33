"""Native against transformers' own generate, on the same weights and questions, interleaved in one run."""

from pathlib import Path

import numpy as np

from specbench.analysis import metrics, statistics
from specbench.analysis.statistics import Interval
from specbench.records.run_directory import RunDirectory


def ratio(run_dir: Path, label: str, other: str) -> Interval:
    """Geometric mean over questions of the rate of `label` over the rate of `other`; equal weights for tasks."""
    frame = metrics.question_frame(metrics.trial_frame(RunDirectory(run_dir).trials()))
    sums = frame[~frame["failed"]].groupby(metrics.QUESTION)[["new_tokens", "seconds"]].sum()
    rate = (sums["new_tokens"] / sums["seconds"]).map(np.log).unstack("method")
    logs = (rate[label] - rate[other]).dropna()
    return statistics.speedup([values.to_numpy() for _, values in logs.groupby("task")])


def best(run_dir: Path, labels: list[str]) -> str:
    """The label with the highest speedup over autoregressive decoding."""
    return max(labels, key=lambda label: cell(run_dir, label).estimate)


def cell(run_dir: Path, label: str, task: str | None = None) -> Interval:
    """Speedup of a method over our own autoregressive decoding, on one task or on all."""
    frame = metrics.question_frame(metrics.trial_frame(RunDirectory(run_dir).trials()))
    logs = metrics.question_ratios(metrics.pair(frame))
    logs = logs[(logs["method"] == label) & ((logs["task"] == task) if task else True)]
    return statistics.speedup([rows["log_speedup"].to_numpy() for _, rows in logs.groupby("task")])
