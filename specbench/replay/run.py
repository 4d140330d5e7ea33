"""From recorded turns to a run directory of replayed ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from specbench.analysis import acceptance
from specbench.datastore.leakage import check_tokenizers
from specbench.decoding.drafter import Drafter
from specbench.errors import InputError, show_value
from specbench.records.moved import translate_targets
from specbench.records.names import stamp_path
from specbench.records.run_directory import RunDirectory
from specbench.records.trial import BASELINE, PER_STEP, Trial
from specbench.records.trial_rules import check_trial
from specbench.replay.recorded_target import replay_trials
from specbench.replay.sources import Recordings, read_recordings
from specbench.setup.instantiate import instantiate
from specbench.setup.objects import check_nodes
from specbench.setup.settings import Node, RunSettings

DRAFT_MODEL = "specbench.models.load.load_draft"
COUNTS = ("new_tokens", "finish_reason", "steps", *PER_STEP)


@dataclass(frozen=True)
class MethodReplay:
    """One method's replayed turns.

    live: how many of them the recorded run also has; equal: how many of those took equal steps.
    """

    method: str
    turns: list[Trial]
    live: int
    equal: int


def replay_run(of: Path, settings: RunSettings) -> tuple[Path, list[MethodReplay], tuple[str, ...]]:
    """Return the new run directory (`out`, or results/replay-...), its methods, and notes for the user. Raises InputError."""
    check_nodes(settings)
    for name, value in settings.sampling.endings.items():
        raise InputError(f"{name}={show_value(value)}: has no effect on where a recorded answer ends; expected null")
    recordings = read_recordings(of, settings)
    default = stamp_path(Path("results"), f"replay-{recordings.name}")
    out = RunDirectory(Path(settings.out).expanduser() if settings.out else default)
    if not out.is_new():
        raise InputError(f"out={out.path}: expected an empty folder or a new one")
    drafters = {label: _load_drafter(label, node) for label, node in settings.method.items()}
    if recordings.tokenizer:
        check_tokenizers(drafters, recordings.tokenizer)
    replayed = {label: replay_trials(label, drafter, recordings.turns) for label, drafter in drafters.items()}
    for trial in (trial for trials in replayed.values() for trial in trials):
        check_trial(trial)
    _write_run(out, recordings, replayed)
    live = {trial.key: trial for trial in recordings.live}
    methods = [_compare_live(label, trials, [live.get(trial.key) for trial in trials]) for label, trials in replayed.items()]
    return out.path, methods, recordings.notes


def _load_drafter(label: str, node: Node) -> Drafter:
    """Raise InputError, before loading it, for a drafter with its own language model."""
    if DRAFT_MODEL in str(translate_targets(node)):
        raise InputError(f"method {label} cannot be replayed: it drafts with its own model, and no model is loaded")
    return instantiate(node, Drafter, f"method.{label}")


def _write_run(out: RunDirectory, recordings: Recordings, replayed: Mapping[str, Sequence[Trial]]) -> None:
    name = recordings.name
    out.write_config({**recordings.config, "method": dict.fromkeys(replayed), "repeats": 1, "batch": 1, "replay_of": name})
    out.write_provenance({**recordings.provenance, "replay_of": name})
    for trials in replayed.values():
        for trial in trials:
            out.append_trials(trial)


def _compare_live(label: str, trials: list[Trial], live: Sequence[Trial | None]) -> MethodReplay:
    pairs = [(trial, other) for trial, other in zip(trials, live, strict=True) if other is not None and other.steps is not None]
    equal = sum(all(getattr(trial, name) == getattr(other, name) for name in COUNTS) for trial, other in pairs)
    return MethodReplay(label, trials, len(pairs), equal)


def describe_replay(methods: Sequence[MethodReplay]) -> list[dict[str, Any]]:
    """Return, of every method but the baseline, its mean accepted tokens by task and overall; nan without a step."""
    tasks = list(dict.fromkeys(trial.task for replayed in methods for trial in replayed.turns))
    return [
        {
            "method": replayed.method,
            "mean_accepted_tokens": {
                "tasks": {task: _average([trial for trial in replayed.turns if trial.task == task]) for task in tasks},
                "overall": _average(replayed.turns),
            },
            "live": replayed.live,
            "equal": replayed.equal,
        }
        for replayed in methods
        if replayed.method != BASELINE
    ]


def _average(turns: Sequence[Trial]) -> float:
    return acceptance.micro(acceptance.collect_steps(turns))


def build_replay_table(methods: Sequence[MethodReplay]) -> Table:
    rows = describe_replay(methods)
    tasks = list(rows[0]["mean_accepted_tokens"]["tasks"]) if rows else []
    columns = ("method", *(task.replace("_", " ") for task in tasks), "overall", "equal to the live run")
    table = Table(*columns, title="Mean accepted tokens, replayed")
    for row in rows:
        means = [*row["mean_accepted_tokens"]["tasks"].values(), row["mean_accepted_tokens"]["overall"]]
        live = f"{row['equal']} of {row['live']} turns" if row["live"] else "-"
        table.add_row(row["method"], *("–" if math.isnan(mean) else f"{mean:.2f}" for mean in means), live)
    return table
