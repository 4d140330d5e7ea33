"""A run directory of replayed turns, from one of recorded ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig
from rich.table import Table

from specbench import acceptance
from specbench.build import built, check
from specbench.continuation import stamped
from specbench.decoding.drafter import Drafter
from specbench.errors import InputError
from specbench.metrics import BASELINE
from specbench.records import RunDirectory, Trial
from specbench.replay import recorded, trials_of
from specbench.report.loaded import load

COUNTS = ("new_tokens", "finish_reason", "steps", "drafted", "nodes", "depth", "accepted", "committed")


@dataclass(frozen=True)
class Replayed:
    """turns: of one method; live: how many of them the recorded run made itself; equal: of those, in the same steps."""

    method: str
    turns: list[Trial]
    live: int
    equal: int


def replayed_run(of: Path, config: DictConfig) -> tuple[Path, list[Replayed]]:
    """The new run directory (config.out, or results/replay-...) and what is in it. Raises InputError."""
    run = load(of)
    directory = RunDirectory(of)
    limit = (run.config.get("sampling") or {}).get("max_new_tokens")
    if not isinstance(limit, int):
        raise InputError(f"{of}: its config does not say sampling.max_new_tokens")
    answers = recorded((trial for trial in run.trials if trial.repeat == 0), directory.prompts(), limit)
    out = RunDirectory(Path(config.out).expanduser() if config.out else stamped(Path("results"), f"replay-{run.name}"))
    if out.path.exists() and any(out.path.iterdir()):
        raise InputError(f"out={out.path}: expected an empty folder or a new one")
    drafters: dict[str, Drafter] = {}
    for label, settings in config.method.items():
        check(settings, f"method.{label}")
        drafters[str(label)] = built(settings)
    made = {label: trials_of(label, drafter, answers) for label, drafter in drafters.items()}
    there = {trial.key: trial for trial in run.trials}
    out.write_config({**run.config, "method": dict.fromkeys(made), "repeats": 1, "replay_of": run.name})
    out.write_provenance({**run.provenance, "replay_of": run.name})
    for trials in made.values():
        for trial in trials:
            out.append(trial)
    return out.path, [_beside(label, trials, [there.get(trial.key) for trial in trials]) for label, trials in made.items()]


def _beside(label: str, trials: list[Trial], live: Sequence[Trial | None]) -> Replayed:
    pairs = [(trial, other) for trial, other in zip(trials, live, strict=True) if other is not None and other.steps is not None]
    equal = sum(all(getattr(one, name) == getattr(other, name) for name in COUNTS) for one, other in pairs)
    return Replayed(label, trials, len(pairs), equal)


def replayed_table(found: Sequence[Replayed]) -> Table:
    tasks = list(dict.fromkeys(trial.task for one in found for trial in one.turns))
    shown = Table(
        "method",
        *(task.replace("_", " ") for task in tasks),
        "overall",
        "equal to the run's own",
        title="Mean accepted tokens, replayed",
    )
    for one in found:
        if one.method == BASELINE:
            continue
        groups = [[trial for trial in one.turns if trial.task == task] for task in tasks]
        means = [acceptance.micro(acceptance.steps_of(turns)) for turns in [*groups, one.turns]]
        live = f"{one.equal} of {one.live} turns" if one.live else "-"
        shown.add_row(one.method, *(f"{mean:.2f}" for mean in means), live)
    return shown
