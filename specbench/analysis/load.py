"""Servers under load: throughput in the windows of passes, and latencies of the requests sent in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import Any

import numpy as np
import pandas as pd

from specbench.analysis import statistics
from specbench.analysis.loaded_run import LoadedRun, order_methods
from specbench.analysis.windows import Window, build_window
from specbench.records.trial import BASELINE, Trial

PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
LATENCIES = ("first_token_s", "token_s")
COLUMNS = [
    "method", "concurrency", "passes", "requests", "failed", "window_s", "tokens_per_second", "throughput_ratio",
    "throughput_ratio_low", "throughput_ratio_high",
    *(f"{name}_{percentile}{side}" for name in LATENCIES for percentile in PERCENTILES for side in ("", "_low", "_high")),
    "good_share", "good_requests_per_second",
]  # fmt: skip


def tabulate_load(run: LoadedRun) -> pd.DataFrame:
    """Return a row per method of COLUMNS, nan where no request is between warm-up and drain.

    throughput_ratio: over autoregressive decoding's, pass by pass, with Student's interval over passes.
    """
    windows = {method: _build_windows(run.trials, method) for method in order_methods([run])}
    limits = run.config.get("goodput") or {}
    rows = [_build_row(method, windows[method], windows.get(BASELINE, {}), limits) for method in windows]
    concurrency = max((trial.concurrency for trial in run.trials), default=1)
    return pd.DataFrame([{**row, "concurrency": concurrency} for row in rows], columns=COLUMNS)


def _build_windows(trials: Sequence[Trial], method: str) -> dict[int, Window]:
    """Return a method's windows by repeat."""
    passes: dict[int, list[Trial]] = {}
    for trial in trials:
        if trial.method == method:
            passes.setdefault(trial.repeat, []).append(trial)
    return {repeat: build_window(one) for repeat, one in passes.items()}


def _build_row(
    method: str, windows: Mapping[int, Window], baseline: Mapping[int, Window], limits: Mapping[str, float]
) -> dict[str, Any]:
    sent = [trial for window in windows.values() for trial in window.sent]
    seconds, failed = sum(window.seconds for window in windows.values()), sum(window.failed for window in windows.values())
    row: dict[str, Any] = {"method": method, "passes": len(windows), "requests": len(sent), "failed": failed, "window_s": seconds}
    if not seconds or not sent:
        return row
    low_high = _compare_rates(windows, baseline)
    good = sum(_is_good(trial, limits) for trial in sent) if limits else np.nan
    return row | {
        "tokens_per_second": sum(window.tokens for window in windows.values()) / seconds,
        **dict(zip(("throughput_ratio", "throughput_ratio_low", "throughput_ratio_high"), astuple(low_high), strict=True)),
        **_compute_percentiles(sent),
        "good_share": good / (len(sent) + failed),
        "good_requests_per_second": good / seconds,
    }


def _compare_rates(windows: Mapping[int, Window], baseline: Mapping[int, Window]) -> statistics.Interval:
    """Return the ratio of two methods' tokens per second, pass by pass."""
    pairs = [(windows[repeat], baseline[repeat]) for repeat in windows if repeat in baseline]
    logs = [np.log(_rate(ours) / _rate(theirs)) for ours, theirs in pairs if min(_rate(ours), _rate(theirs)) > 0]
    return statistics.speedup([np.array(logs)]) if logs else statistics.Interval(np.nan, np.nan, np.nan)


def _rate(window: Window) -> float:
    return window.tokens / window.seconds if window.seconds else 0.0


def get_latencies(trial: Trial) -> tuple[float, float]:
    """Return the seconds to the first token, and per token after it; nan if there is none."""
    first, last = trial.client_first_s or 0.0, trial.client_last_s or 0.0
    return first, (last - first) / (trial.new_tokens - 1) if trial.new_tokens > 1 else float("nan")


def _compute_percentiles(sent: Sequence[Trial]) -> dict[str, float]:
    """Return percentiles over requests; their limits are order statistics."""
    values: dict[str, float] = {}
    for name, sample in zip(LATENCIES, zip(*map(get_latencies, sent), strict=True), strict=True):
        known = np.array([value for value in sample if not np.isnan(value)])
        for percentile, share in PERCENTILES.items():
            limits = astuple(statistics.quantile(known, share))
            values |= {f"{name}_{percentile}{side}": value for side, value in zip(("", "_low", "_high"), limits, strict=True)}
    return values


def _is_good(trial: Trial, limits: Mapping[str, float]) -> bool:
    """Return whether a request stayed within the limits."""
    first, token = get_latencies(trial)
    return first <= limits["first_token_s"] and not token > limits["token_s"]
