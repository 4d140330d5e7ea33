"""`specbench plan`: the questions needed to find an effect, and the time and memory of the run, from a pilot run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table
from scipy import stats

from specbench.analysis.loaded_run import LoadedRun, find_first
from specbench.analysis.metrics import CELL, QUESTION
from specbench.compare.gate import SampleSize, plan_paired_size, plan_size
from specbench.compare.runs import compute_log_ratios, list_ratios
from specbench.errors import InputError, abbreviate
from specbench.records.trial import BASELINE
from specbench.report.tables import format_number


@dataclass(frozen=True)
class MethodPlan:
    """The plan of one method. deviation: SD over questions of its log speedup; effect: smallest one that the pilot's size finds.

    needed: questions for the planned effect; stored, paired: what `specbench compare` needs to find a slowdown of that size
    relative to a stored run, or to another commit in the same run.
    """

    method: str
    questions: int
    deviation: float
    effect: float
    needed: int
    stored: SampleSize
    paired: int | None


def check_pilot(pilot: LoadedRun, target: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
    """Raise InputError for a pilot of another target, batch or concurrency. target: settings of the planned target, by name."""
    for name, planned in sizes.items():
        if (before := find_first(pilot.config, name) or 1) != planned:
            raise InputError(
                f"--pilot {pilot.name} used {name}={before} but the plan uses {planned}: its timings do not transfer"
            )
    used = pilot.config.get("target") or {}
    for key, planned in target.items():
        if used.get(key) != planned:
            change = f"target.{key}={used.get(key)} but the plan uses {planned}"
            raise InputError(f"--pilot {pilot.name} used {change}: its timings do not transfer")


def plan_methods(pilot: LoadedRun, methods: Sequence[str], effect: float, power: float, level: float = 0.05) -> list[MethodPlan]:
    """Plan the methods that the pilot has. Raises InputError without two repeats and two questions per task."""
    ratios = [(method, over) for method, over in list_ratios(pilot) if {method, over} <= {*methods}]
    versions = 1 + sum(over == BASELINE for _, over in ratios)  # compared with themselves, the baseline included
    plans = []
    for method, over in ratios:
        logs = compute_log_ratios(pilot, method, over, by_repeat=True)
        deviation, noise = _deviation(logs), _noise(logs)
        count = logs.groupby(["task", "question_id"]).ngroups
        if np.isnan(deviation) or np.isnan(noise) or logs.groupby(["task", "repeat"]).size().min() < 2:
            raise InputError(f"{pilot.name} is too small for a pilot: expected at least two questions per task and two repeats")
        reach = float(stats.norm.ppf(1 - level / 2) + stats.norm.ppf(power))
        needed = max(2, int(np.ceil((reach * deviation / np.log1p(effect)) ** 2)))
        now = float(np.expm1(reach * deviation / np.sqrt(count)))
        tasks = logs.index.get_level_values("task").nunique()
        name = method if over == BASELINE else f"{method} over {over}"
        stored = plan_size(np.sqrt(2) * noise, len(ratios), tasks, effect, power)
        paired = plan_paired_size(noise, versions, tasks, effect, power)
        plans.append(MethodPlan(name, count, deviation, now, needed, stored, paired))
    return plans


def _deviation(logs: pd.Series) -> float:
    """Return the SD over questions inside tasks, repeats averaged."""
    means = logs.groupby(["task", "question_id"]).mean()
    return float(np.sqrt(means.groupby("task").var().mean()))


def _noise(logs: pd.Series) -> float:
    """Return the SD of a question's mean over its repeats; compare uses the fastest repeat, which usually varies less."""
    groups = logs.groupby(["task", "question_id"])
    return float(np.sqrt((groups.var() / groups.size()).mean()))


@dataclass(frozen=True)
class RunPlan:
    """The planned run. questions: by task; minutes: by method and task, nan if the pilot lacks them; memory_mb: by method."""

    questions: Mapping[str, int]
    minutes: dict[str, dict[str, float]]
    memory_mb: dict[str, float]

    @property
    def total(self) -> float:
        """Minutes of everything that the pilot has."""
        return float(np.nansum([list(row.values()) for row in self.minutes.values()]))

    @property
    def lacking(self) -> list[str]:
        """What the pilot lacks: methods, tasks, and methods on a task."""
        minutes = pd.DataFrame(self.minutes, index=list(self.questions)).T  # methods × tasks
        methods, tasks = minutes.isna().all(axis="columns"), minutes.isna().all(axis="index")
        cells = minutes.loc[~methods, ~tasks].isna()
        pairs = [f"{method} on {task}" for method in cells.index for task in cells.columns if cells.at[method, task]]
        return [*methods.index[methods], *tasks.index[tasks], *pairs]


def plan_run(pilot: LoadedRun, questions: Mapping[str, int], methods: Sequence[str], repeats: int) -> RunPlan:
    """Plan a run whose turns take as long as the pilot's of the same method and task."""
    frame = pilot.turns[~pilot.turns["failed"].astype(bool)]
    batch = int(frame["batch"].max())
    seconds = frame.groupby([*QUESTION, "repeat"])["seconds"].sum().groupby(CELL).mean()
    memory = frame.groupby("method")["peak_memory_bytes"].max() / 1e6
    minutes = {
        method: {task: count / batch * repeats * seconds.get((method, task), np.nan) / 60 for task, count in questions.items()}
        for method in methods
    }
    return RunPlan(questions, minutes, {method: memory.get(method, np.nan) for method in methods})


def build_run_table(plan: RunPlan) -> Table:
    """Return the table of minutes for the terminal."""
    table = Table(title="Minutes of the planned run, by task and its questions", box=SIMPLE_HEAD, padding=0, pad_edge=False)
    table.add_column("method", no_wrap=True)
    for name in (*(f"{task.replace('_', ' ')}\n{count}" for task, count in plan.questions.items()), "all", "peak MB"):
        table.add_column(name, justify="right", overflow="fold", min_width=4)
    for method, minutes in plan.minutes.items():
        times = [format_number(value, 1) for value in (*minutes.values(), sum(minutes.values()))]
        table.add_row(method, *times, format_number(plan.memory_mb[method], 0))
    without = f", without {abbreviate(plan.lacking)}, which the pilot lacks" if plan.lacking else ""
    table.caption = f"{plan.total:.1f} minutes in all{without}"
    return table


def build_methods_table(plans: Sequence[MethodPlan], effect: float, power: float, batch: int) -> Table:
    """Return the table of questions, or of groups of questions, for the terminal."""
    unit = "questions" if batch == 1 else f"groups of {batch} questions"
    names = ("method", unit, "SD of log speedup", "finds now", f"for {effect:.0%}", "compare", "compare --against")
    table = Table(*names, title=f"{unit.capitalize()} for a difference of {effect:.0%} with a power of {power:.0%}")
    for plan in plans:
        stored = f"{plan.stored.questions}" + f", {plan.stored.runs} runs" * (plan.stored.runs > 1)
        paired = "not in one run" if plan.paired is None else str(plan.paired)
        cells = (f"{plan.questions}", f"{plan.deviation:.3f}", f"{plan.effect:.1%}", f"{plan.needed}", stored, paired)
        table.add_row(plan.method, *cells)
    table.caption = f"compare: {unit} per run, and runs per side, with which a slowdown of that size fails"
    return table
