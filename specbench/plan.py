"""`specbench plan`: how many questions a wanted effect takes, how long that is and how much memory; from a pilot run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table
from scipy import stats

from specbench.compare.gate import Needed, size, size_beside
from specbench.compare.runs import log_ratios, timed
from specbench.errors import InputError
from specbench.metrics import BASELINE
from specbench.report.loaded import LoadedRun


@dataclass(frozen=True)
class Row:
    """Of one method. deviation: SD over questions of its log speedup; effect: what its questions find now.

    needed: questions for the wanted effect; stored, beside: what `specbench compare` takes to find a slowdown of that
    size against a stored run, and against another commit in the same run.
    """

    method: str
    questions: int
    deviation: float
    effect: float
    needed: int
    stored: Needed
    beside: int | None


def rows(pilot: LoadedRun, methods: Sequence[str], effect: float, power: float, level: float = 0.05) -> list[Row]:
    """Of the planned methods that the pilot has. Raises InputError for one of one repeat or without two questions a task."""
    ratios = [(method, over) for method, over in timed(pilot) if method in methods]
    versions = 1 + sum(over == BASELINE for _, over in ratios)  # that are compared with themselves, the baseline too
    found = []
    for method, over in ratios:
        logs = log_ratios(pilot, method, over, by_repeat=True)
        deviation, noise = _deviation(logs), _noise(logs)
        count = logs.groupby(["task", "question_id"]).ngroups
        if np.isnan(deviation) or np.isnan(noise) or logs.groupby(["task", "repeat"]).size().min() < 2:
            raise InputError(f"{pilot.name} is no pilot: two questions a task and two repeats are the least")
        reach = float(stats.norm.ppf(1 - level / 2) + stats.norm.ppf(power))
        needed = max(2, int(np.ceil((reach * deviation / np.log1p(effect)) ** 2)))
        now = float(np.expm1(reach * deviation / np.sqrt(count)))
        tasks = logs.index.get_level_values("task").nunique()
        name = method if over == BASELINE else f"{method} over {over}"
        stored = size(np.sqrt(2) * noise, len(ratios), tasks, effect, power)
        beside = size_beside(noise, versions, tasks, effect, power)
        found.append(Row(name, count, deviation, now, needed, stored, beside))
    return found


def _deviation(logs: pd.Series) -> float:
    """SD over questions inside tasks, repeats averaged."""
    means = logs.groupby(["task", "question_id"]).mean()
    return float(np.sqrt(means.groupby("task").var().mean()))


def _noise(logs: pd.Series) -> float:
    """SD of a question's mean over its repeats, as they vary; the fastest of them, which counts, varies less as a rule."""
    groups = logs.groupby(["task", "question_id"])
    return float(np.sqrt((groups.var() / groups.size()).mean()))


def cells(pilot: LoadedRun, questions: Mapping[str, int], methods: Sequence[str], repeats: int) -> pd.DataFrame:
    """The planned run: turns, minutes and memory by method and task, as the pilot's turns took."""
    frame = pilot.frame[~pilot.frame["failed"].astype(bool)]
    per_question = frame.groupby(["method", "task", "question_id", "repeat"])["seconds"].sum()
    seconds = per_question.groupby(["method", "task"]).mean()
    memory = frame.groupby("method")["peak_memory_bytes"].max()
    found: list[dict[str, Any]] = []
    for method in methods:
        for task, count in questions.items():
            took = seconds.get((method, task), float("nan"))
            minutes = count * repeats * took / 60
            found.append(
                {
                    "method": method,
                    "task": task,
                    "questions": count,
                    "minutes": minutes,
                    "memory_mb": memory.get(method, np.nan) / 1e6,
                }
            )
    return pd.DataFrame(found)


def cells_table(found: pd.DataFrame) -> Table:
    """By task, all methods together; memory is the largest of them."""
    shown = Table(
        "task", "questions", "minutes", title="The run as planned: one turn after the other, as long as the pilot's took"
    )
    for task, rows_ in found.groupby("task", sort=False):
        minutes = rows_["minutes"]
        shown.add_row(
            str(task), str(rows_["questions"].iloc[0]), "not in the pilot" if minutes.isna().any() else f"{minutes.sum():.1f}"
        )
    memory = f"{found['memory_mb'].max():.0f} MB at most" if found["memory_mb"].notna().any() else "memory not measured"
    shown.caption = f"{found['minutes'].sum():.0f} minutes in all, {found['method'].nunique()} methods, {memory}"
    return shown


def rows_table(found: Sequence[Row], effect: float, power: float) -> Table:
    names = ("method", "questions", "SD of log speedup", "finds now", f"for {effect:.0%}", "compare", "compare --against")
    shown = Table(*names, title=f"Questions for a difference of {effect:.0%} with a power of {power:.0%}")
    for row in found:
        wanted = [str(row.needed), _told(row.stored), "not in one run" if row.beside is None else str(row.beside)]
        shown.add_row(row.method, str(row.questions), f"{row.deviation:.3f}", f"{row.effect:.1%}", *wanted)
    shown.caption = "compare: questions of a run, and runs of each side, with which a slowdown of that size fails"
    return shown


def _told(needed: Needed) -> str:
    return str(needed.questions) + f", {needed.runs} runs" * (needed.runs > 1)
