"""The rows of the leaderboard: one per run, method and task, with what they may be compared by.

Acceptance does not depend on the machine: rows of one `acceptance_group` have the same target, questions' suite and sampling.
Speed does: rows of one `speed_group` also have the same machine, dtype, batch and the very same questions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import pandas as pd

from specbench.analysis.loaded_run import LoadedRun, find_first
from specbench.analysis.summary import identify_run, summarise
from specbench.errors import InputError
from specbench.records.trial import BASELINE, OVERALL
from specbench.report.alarm import Alarm
from specbench.report.alarms import find_alarms

WORKLOAD = ("target", "suite", "suite_sha256", "temperature", "ends", "template", "max_new_tokens", "context")
MACHINE = ("device", "cpu", "cores", "threads")
ACCEPTANCE_GROUP = WORKLOAD
SPEED_GROUP = (*MACHINE, *WORKLOAD, "shape", "dtype", "batch", "concurrency", "questions_sha256")
NUMBERS = (
    "questions", "repeats", "mean_accepted_tokens", "acceptance_rate", "tokens_per_forward",
    "conversion", "conversion_low", "conversion_high", "tokens_per_second", "speedup", "speedup_low", "speedup_high",
)  # fmt: skip
COLUMNS = (
    "run", "started", "specbench", "commit", "torch", *MACHINE, *WORKLOAD, "asked", "questions_sha256", "shape", "dtype", "batch",
    "concurrency", "engine", "method", "task", "kind", "state", *NUMBERS, "lossless", "lossless_texts", "rank_best", "rank_worst",
    "alarms", "acceptance_group", "speed_group",
)  # fmt: skip
BETWEEN = " | "  # alarms of one row
RANKED = ("measured", "server")  # kinds; what knew the answer, or was not timed here, has no rank


Row = Mapping[Hashable, Any]


def tabulate_runs(runs: Sequence[LoadedRun]) -> pd.DataFrame:
    """Return COLUMNS for every method and task of the runs. Raises InputError for none, and for a run that comes twice."""
    if not runs:
        raise InputError("expected at least one run or bundle")
    _check_twins(runs)
    rows = pd.concat([_tabulate_run(run, name) for run, name in zip(runs, _name_runs(runs), strict=True)], ignore_index=True)
    for column, names in (("acceptance_group", ACCEPTANCE_GROUP), ("speed_group", SPEED_GROUP)):
        rows[column] = rows.groupby(list(names), dropna=False, sort=False).ngroup() + 1
    rows[["rank_best", "rank_worst"]] = float("nan")
    for _, cell in rows[_may_rank(rows)].groupby(["speed_group", "task"], sort=False):
        rows.loc[cell.index, ["rank_best", "rank_worst"]] = _rank_intervals(cell)
    return rows[list(COLUMNS)]


def _check_twins(runs: Sequence[LoadedRun]) -> None:
    """Raise InputError for the same trials under two paths, such as a run and its bundle."""
    seen: dict[str, str] = {}
    for run in runs:
        times = sorted(f"{one.key} {one.attempt} {one.prefill_s} {one.decode_s} {one.output_sha256}" for one in run.attempts)
        digest = hashlib.sha256("\n".join(times).encode()).hexdigest()
        if digest in seen:
            raise InputError(f"{seen[digest]} and {run.name} are the same run; give it once")
        seen[digest] = run.name


def _name_runs(runs: Sequence[LoadedRun]) -> list[str]:
    """Return the runs' names, numbered where two have the same."""
    names: list[str] = []
    for run in runs:
        same = sum(name == run.name or name.rpartition(" #")[0] == run.name for name in names)
        names.append(f"{run.name} #{same + 1}" if same else run.name)
    return names


def _tabulate_run(run: LoadedRun, name: str) -> pd.DataFrame:
    summary = summarise(run)
    alarms = [alarm for alarm in find_alarms(run, summary) if alarm.level == "alarm"]
    served = {trial.method for trial in run.trials if trial.client_first_s is not None}
    rows = summary.assign(**_describe_run(run), run=name)
    rows["kind"] = ["server" if method in served else kind for method, kind in zip(rows["method"], rows["kind"], strict=True)]
    said = [_list_alarms(alarms, method, task) for method, task in zip(rows["method"], rows["task"], strict=True)]
    return rows.assign(alarms=said)


def _describe_run(run: LoadedRun) -> dict[str, Any]:
    facts = identify_run(run)
    provenance = run.provenance
    asked = sorted({(trial.task, str(trial.question_id), trial.turn) for trial in run.trials})
    return {
        **{key: facts[key] for key in ("target", "shape", "dtype", "temperature", "batch", "concurrency", "ends", "template")},
        "device": facts["device"] or "unknown device",
        "cpu": find_first(provenance, "machine.cpu"),
        "cores": find_first(provenance, "machine.cores"),
        "threads": find_first(provenance, "machine.threads"),
        "started": find_first(provenance, "started"),
        "specbench": find_first(provenance, "versions.specbench"),
        "torch": find_first(provenance, "versions.torch"),
        "commit": str(find_first(provenance, "git.commit"))[:9],
        "suite": run.trials[0].suite,
        "suite_sha256": str(find_first(provenance, "suite_sha256"))[:8],
        "asked": len({question for _, question, _ in asked}),
        "questions_sha256": hashlib.sha256(repr(asked).encode()).hexdigest()[:8],
        "max_new_tokens": find_first(run.config, "sampling.max_new_tokens"),
        "context": run.trials[0].context,
    }


def _list_alarms(alarms: Sequence[Alarm], method: str, task: str) -> str:
    """Return the alarms that touch a row: its own, those of its tasks, of the run, and of what its speedup is measured by."""
    concerned = [
        alarm
        for alarm in alarms
        if alarm.method in ("the run", BASELINE, method) and (alarm.task in (OVERALL, task) or task == OVERALL)
    ]
    return BETWEEN.join(str(alarm).removeprefix("alarm: ") for alarm in concerned)


def _may_rank(rows: pd.DataFrame) -> pd.Series:
    measured = rows["kind"].isin(RANKED) & (rows["method"] != BASELINE) & rows["speedup_low"].notna()
    mask: pd.Series = measured & (rows["alarms"] == "")
    return mask


def _rank_intervals(cell: pd.DataFrame) -> list[list[float]]:
    """Return best and worst rank of each row: before it come the rows whose intervals lie above, after it those below."""
    low, high = cell["speedup_low"].to_numpy(dtype=float), cell["speedup_high"].to_numpy(dtype=float)
    return [[1.0 + (low > top).sum(), float((high >= bottom).sum())] for bottom, top in zip(low, high, strict=True)]


def sort_rows(rows: pd.DataFrame, by: str) -> pd.DataFrame:
    """Return rows in the order they are shown: overall first, then by task; in each the largest first, alarmed ones last."""
    tasks = [OVERALL, *sorted(set(rows["task"]) - {OVERALL})]
    last = (rows["alarms"] != "") | ~rows["kind"].isin(RANKED)
    ordered = rows.assign(_task=rows["task"].map(tasks.index), _last=last, _value=-rows[by].fillna(float("-inf")))
    return ordered.sort_values(["_task", "_last", "_value"], kind="stable")[list(rows.columns)]


def format_setting(value: Any) -> str:
    """Return a number without needless digits, or the text that is there instead of one."""
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)


def describe_workload(row: Row) -> str:
    """Return the heading of an acceptance group."""
    return f"{row['target']} on the suite {row['suite']}, temperature {format_setting(row['temperature'])}"


def describe_machine(row: Row) -> str:
    """Return a machine in words, such as `AMD EPYC, 2 threads on 2 cores`."""
    cpu = f" beside {row['cpu']}" if row["cpu"] not in ("", row["device"]) else ""
    cores = f", {row['threads'] or '?'} threads on {row['cores'] or '?'} cores" if row["threads"] or row["cores"] else ""
    return f"{row['device']}{cpu}{cores}"


def describe_speed_group(row: Row) -> str:
    """Return the heading of a speed group: all that must be equal before speeds are compared."""
    shape = f" expanded to {row['shape']}" if row["shape"] else ""
    load = f", {row['concurrency']} requests at a time" if row["concurrency"] > 1 else ""
    return (
        f"{describe_machine(row)}: {row['target']}{shape}, {row['dtype'] or 'unknown dtype'}, batch {row['batch']}{load}, "
        f"temperature {format_setting(row['temperature'])}"
    )


def describe_conditions(row: Row) -> str:
    """Return what else the rows of an acceptance group have in common."""
    limit = f"at most {row['max_new_tokens']} tokens per turn; " if row["max_new_tokens"] else ""
    return f"{limit}answers end {row['ends']}; chat template: {row['template']}"


def describe_speed_conditions(row: Row) -> str:
    """Return what else the rows of a speed group have in common."""
    return f"the same {row['asked']} questions of the suite {row['suite']}; {describe_conditions(row)}"


DESCRIBED = {  # heading and conditions of a group
    "acceptance_group": (describe_workload, describe_conditions),
    "speed_group": (describe_speed_group, describe_speed_conditions),
}
