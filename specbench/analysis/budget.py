"""What a run reached within its budget, and what more time would buy.

The half-width of an overall interval shrinks with the square root of the questions per task: it is the present one times the
ratio of the standard errors, and of Student's quantiles, with so many questions of the spread that is seen now.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import expm1, isnan, log, nan, sqrt
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from specbench.analysis import metrics
from specbench.analysis.loaded_run import LoadedRun
from specbench.analysis.statistics import pool_variances
from specbench.records.trial import BASELINE, OVERALL, QuestionId

LEVEL = 0.95  # of the tables' intervals


def describe_stop(run: LoadedRun, summary: pd.DataFrame) -> str | None:
    """Return how far a budget reached, with the widest overall interval now and with more time; None of any other run."""
    budget = run.provenance.get("budget")
    if not budget or not run.missing:
        return None
    whole, begun = _count_whole(run), {trial.question_id for trial in run.attempts}
    done, every = sum(whole.values()), sum(budget["questions"].values())
    half_done = f", {len(begun) - done} more begun and left out" if len(begun) > done and done < every else ""
    parts = [f"stopped by budget ({format_time(budget['seconds'])}) after {done} of {every} questions{half_done}"]
    if done >= every:
        parts = [f"stopped by budget after the first repeat of all {every} questions; more repeats hardly narrow an interval"]
    return "; ".join([*parts, *_describe_intervals(run, summary, budget, whole), "the same command resumes"])


def _describe_intervals(run: LoadedRun, summary: pd.DataFrame, budget: Mapping[str, Any], whole: Counter[str]) -> list[str]:
    total, pace = budget["questions"], budget["question_s"]
    rest = sum((count - whole[task]) * pace.get(task, 0.0) for task, count in total.items())
    left = f"all questions: about {format_time(rest)} more" if rest else ""  # "" where no pace is known, too
    if lacking := [task for task in total if not whole[task]]:
        least = format_time(estimate_least(budget))
        return list(filter(None, [f"{', '.join(lacking)} without a whole question: one of each takes about {least}", left]))
    method, half = _find_widest(summary)
    if isnan(half):
        return list(filter(None, ["no interval yet, which takes two questions of each task", left]))
    now = f"widest overall interval: {method} {_format_half(half)}"
    if not rest:
        return [now]
    strata = _collect_strata(run, method)
    again, last = (half * predict_ratio(strata, whole, counts) for counts in (grow(whole, total, pace, budget["seconds"]), total))
    more = f"{format_time(budget['seconds'])} more: about {_format_half(again)}"
    return [now, *([more] if rest > budget["seconds"] else []), f"{left}, {_format_half(last)}"]


def _count_whole(run: LoadedRun) -> Counter[str]:
    """Return, by task, the questions whose first repeat every method has finished."""
    methods = {trial.method for trial in run.trials} | run.missing.keys()
    tasks = {trial.question_id: trial.task for trial in run.trials}
    finished: dict[QuestionId, set[str]] = {}
    for trial in run.trials:
        if trial.repeat == 0:
            finished.setdefault(trial.question_id, set()).add(trial.method)
    return Counter(tasks[question] for question, by in finished.items() if by >= methods)


def _find_widest(summary: pd.DataFrame) -> tuple[str, float]:
    """Return the method with the widest overall interval, and half its width as a logarithm; nan without an interval."""
    rows = summary[(summary["task"] == OVERALL) & (summary["method"] != BASELINE)].dropna(subset=["speedup_low", "speedup_high"])
    halves = {row["method"]: log(row["speedup_high"] / row["speedup_low"]) / 2 for row in rows.to_dict("records")}
    return max(halves.items(), key=lambda one: one[1], default=("", nan))


def _collect_strata(run: LoadedRun, method: str) -> dict[str, pd.Series]:
    """Return a method's log speedups by task, one per question or group."""
    ratios = metrics.compute_question_ratios(metrics.pair_with_baseline(metrics.build_question_frame(run.turns)))
    own = ratios[ratios["method"] == method].dropna(subset=["log_speedup"])
    return {str(task): logs for task, logs in own.groupby("task")["log_speedup"]}


def predict_ratio(strata: Mapping[str, pd.Series], now: Mapping[str, float], then: Mapping[str, float]) -> float:
    """Return the half-width of an interval over that of now. strata: log speedups by task; now, then: questions by task."""
    spreads = np.array([logs.var(ddof=1) for logs in strata.values()])
    sizes = np.array([len(logs) for logs in strata.values()], dtype=float)
    grown = sizes * np.array([then[task] / now[task] for task in strata])
    (before, known), (after, later) = (pool_variances(spreads, counts) for counts in (sizes, grown))
    quantiles = [float(stats.t.ppf((1 + LEVEL) / 2, freedom)) for freedom in (known, later)]
    return sqrt(after / before) * quantiles[1] / quantiles[0] if before else 1.0


def grow(done: Mapping[str, int], total: Mapping[str, int], pace: Mapping[str, float], seconds: float) -> dict[str, int]:
    """Return the questions by task after so many seconds more, one of each task in turn. pace: seconds of one."""
    counts = {task: done[task] for task in total}
    while open_tasks := [task for task in total if counts[task] < total[task]]:
        for task in open_tasks:
            seconds -= pace[task]
            if seconds < 0:
                return counts
            counts[task] += 1
    return counts


def estimate_least(budget: Mapping[str, Any]) -> float:
    """Return the seconds of a command that runs one question of each task, as far as is known. budget: of run.json."""
    return float(budget["ready_s"] + sum(budget["question_s"].values()))


def _format_half(half: float) -> str:
    return f"±{100 * expm1(half):.1f} %"


def format_time(seconds: float) -> str:
    """Return a time in words: 45 s, 30 minutes, 5.2 hours."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 6000 else f"{seconds / 3600:.1f} hours"
