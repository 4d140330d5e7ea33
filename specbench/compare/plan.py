"""`specbench plan`: how many questions a wanted effect takes, how long that is and how much memory; from a pilot run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table
from scipy import stats

from specbench.analysis.loaded_run import LoadedRun
from specbench.analysis.metrics import CELL, QUESTION
from specbench.compare.gate import SampleSize, plan_paired_size, plan_size
from specbench.compare.runs import compute_log_ratios, list_ratios
from specbench.errors import InputError, abbreviate
from specbench.records.trial import BASELINE


@dataclass(frozen=True)
class MethodPlan:
    """Of one method. deviation: SD over questions of its log speedup; effect: what its questions find now.

    needed: questions for the wanted effect; stored, beside: what `specbench compare` takes to find a slowdown of that
    size against a stored run, and against another commit in the same run.
    """

    method: str
    questions: int
    deviation: float
    effect: float
    needed: int
    stored: SampleSize
    beside: int | None


def plan_methods(pilot: LoadedRun, methods: Sequence[str], effect: float, power: float, level: float = 0.05) -> list[MethodPlan]:
    """Of the planned methods that the pilot has. Raises InputError for one of one repeat or without two questions a task."""
    ratios = [(method, over) for method, over in list_ratios(pilot) if {method, over} <= {*methods}]
    versions = 1 + sum(over == BASELINE for _, over in ratios)  # that are compared with themselves, the baseline too
    found = []
    for method, over in ratios:
        logs = compute_log_ratios(pilot, method, over, by_repeat=True)
        deviation, noise = _deviation(logs), _noise(logs)
        count = logs.groupby(["task", "question_id"]).ngroups
        if np.isnan(deviation) or np.isnan(noise) or logs.groupby(["task", "repeat"]).size().min() < 2:
            raise InputError(f"{pilot.name} is no pilot: two questions a task and two repeats are the least")
        reach = float(stats.norm.ppf(1 - level / 2) + stats.norm.ppf(power))
        needed = max(2, int(np.ceil((reach * deviation / np.log1p(effect)) ** 2)))
        now = float(np.expm1(reach * deviation / np.sqrt(count)))
        tasks = logs.index.get_level_values("task").nunique()
        name = method if over == BASELINE else f"{method} over {over}"
        stored = plan_size(np.sqrt(2) * noise, len(ratios), tasks, effect, power)
        beside = plan_paired_size(noise, versions, tasks, effect, power)
        found.append(MethodPlan(name, count, deviation, now, needed, stored, beside))
    return found


def _deviation(logs: pd.Series) -> float:
    """SD over questions inside tasks, repeats averaged."""
    means = logs.groupby(["task", "question_id"]).mean()
    return float(np.sqrt(means.groupby("task").var().mean()))


def _noise(logs: pd.Series) -> float:
    """SD of a question's mean over its repeats, as they vary; the fastest of them, which counts, varies less as a rule."""
    groups = logs.groupby(["task", "question_id"])
    return float(np.sqrt((groups.var() / groups.size()).mean()))


@dataclass(frozen=True)
class RunPlan:
    """The planned run. questions: by task; minutes: by method and task, nan of what the pilot lacks; memory_mb: by method."""

    questions: Mapping[str, int]
    minutes: dict[str, dict[str, float]]
    memory_mb: dict[str, float]

    @property
    def total(self) -> float:
        return float(np.nansum([list(row.values()) for row in self.minutes.values()]))

    @property
    def lacking(self) -> list[str]:
        """What the total is without: methods, tasks, and methods on a task."""
        there = {(method, task) for method, row in self.minutes.items() for task, took in row.items() if not np.isnan(took)}
        methods, tasks = {method for method, _ in there}, {task for _, task in there}
        whole = [*(name for name in self.minutes if name not in methods), *(name for name in self.questions if name not in tasks)]
        cells = [(method, task) for method in self.minutes for task in self.questions if method in methods and task in tasks]
        return whole + [f"{method} on {task}" for method, task in cells if (method, task) not in there]


def plan_run(pilot: LoadedRun, questions: Mapping[str, int], methods: Sequence[str], repeats: int) -> RunPlan:
    """One turn after the other, as long as the pilot's of that method and task."""
    frame = pilot.frame[~pilot.frame["failed"].astype(bool)]
    seconds = frame.groupby([*QUESTION, "repeat"])["seconds"].sum().groupby(CELL).mean()
    memory = frame.groupby("method")["peak_memory_bytes"].max() / 1e6
    minutes = {
        method: {task: count * repeats * seconds.get((method, task), np.nan) / 60 for task, count in questions.items()}
        for method in methods
    }
    return RunPlan(questions, minutes, {method: memory.get(method, np.nan) for method in methods})


def build_run_table(found: RunPlan) -> Table:
    shown = Table(title="Minutes of the run as planned, by task and its questions", box=SIMPLE_HEAD, padding=0, pad_edge=False)
    shown.add_column("method", no_wrap=True)
    for name in (*(f"{task.replace('_', ' ')}\n{count}" for task, count in found.questions.items()), "all", "peak MB"):
        shown.add_column(name, justify="right", overflow="fold", min_width=4)
    for method, minutes in found.minutes.items():
        times = [_format_number(took, 1) for took in (*minutes.values(), sum(minutes.values()))]
        shown.add_row(method, *times, _format_number(found.memory_mb[method], 0))
    without = f", without {abbreviate(found.lacking)}, which the pilot lacks" if found.lacking else ""
    shown.caption = f"{found.total:.1f} minutes in all{without}"
    return shown


def _format_number(value: float, places: int) -> str:
    return "–" if np.isnan(value) else f"{value:.{places}f}"


def build_methods_table(found: Sequence[MethodPlan], effect: float, power: float) -> Table:
    names = ("method", "questions", "SD of log speedup", "finds now", f"for {effect:.0%}", "compare", "compare --against")
    shown = Table(*names, title=f"Questions for a difference of {effect:.0%} with a power of {power:.0%}")
    for row in found:
        wanted = [str(row.needed), _format_size(row.stored), "not in one run" if row.beside is None else str(row.beside)]
        shown.add_row(row.method, str(row.questions), f"{row.deviation:.3f}", f"{row.effect:.1%}", *wanted)
    shown.caption = "compare: questions of a run, and runs of each side, with which a slowdown of that size fails"
    return shown


def _format_size(needed: SampleSize) -> str:
    return str(needed.questions) + f", {needed.runs} runs" * (needed.runs > 1)
