"""A run directory of replayed turns, from recorded ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from specbench.analysis import acceptance
from specbench.datastore.leakage import check_tokenizers
from specbench.decoding.drafter import Drafter
from specbench.errors import InputError
from specbench.records.moved import translate_targets
from specbench.records.run_directory import RunDirectory
from specbench.records.trial import BASELINE, PER_STEP, Trial
from specbench.replay.recorded_target import replay_trials
from specbench.replay.sources import Recordings, read_recordings
from specbench.running.resume import stamp_path
from specbench.setup.instantiate import instantiate
from specbench.setup.objects import check_nodes
from specbench.setup.settings import Node, RunSettings

DRAFT_MODEL = "specbench.models.load.load_draft"
COUNTS = ("new_tokens", "finish_reason", "steps", *PER_STEP)


@dataclass(frozen=True)
class MethodReplay:
    """turns: of one method; live: how many of them the recorded run made itself; equal: of those, in the same steps."""

    method: str
    turns: list[Trial]
    live: int
    equal: int


def replay_run(of: Path, settings: RunSettings) -> tuple[Path, list[MethodReplay], str | None]:
    """The new run directory (config.out, or results/replay-...), what is in it, and what is to be said. Raises InputError."""
    check_nodes(settings)
    found = read_recordings(of, settings)
    out = RunDirectory(Path(settings.out).expanduser() if settings.out else stamp_path(Path("results"), f"replay-{found.name}"))
    if not out.is_new():
        raise InputError(f"out={out.path}: expected an empty folder or a new one")
    drafters = {label: _load_drafter(label, node) for label, node in settings.method.items()}
    if found.tokenizer:
        check_tokenizers(drafters, found.tokenizer)
    made = {label: replay_trials(label, drafter, found.turns) for label, drafter in drafters.items()}
    _write_run(out, found, made)
    there = {trial.key: trial for trial in found.live}
    beside = [_compare_live(label, trials, [there.get(trial.key) for trial in trials]) for label, trials in made.items()]
    return out.path, beside, found.note


def _load_drafter(label: str, node: Node) -> Drafter:
    """Raises InputError, before it is loaded, for one with a language model of its own."""
    if DRAFT_MODEL in str(translate_targets(node)):
        raise InputError(f"method {label} cannot be replayed: it drafts with a model of its own, and no model is loaded")
    drafter: Drafter = instantiate(node)
    return drafter


def _write_run(out: RunDirectory, found: Recordings, made: Mapping[str, Sequence[Trial]]) -> None:
    out.write_config({**found.config, "method": dict.fromkeys(made), "repeats": 1, "replay_of": found.name})
    out.write_provenance({**found.provenance, "replay_of": found.name})
    for trials in made.values():
        for trial in trials:
            out.append_trial(trial)


def _compare_live(label: str, trials: list[Trial], live: Sequence[Trial | None]) -> MethodReplay:
    pairs = [(trial, other) for trial, other in zip(trials, live, strict=True) if other is not None and other.steps is not None]
    equal = sum(all(getattr(one, name) == getattr(other, name) for name in COUNTS) for one, other in pairs)
    return MethodReplay(label, trials, len(pairs), equal)


def build_replay_table(found: Sequence[MethodReplay]) -> Table:
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
        means = [acceptance.micro(acceptance.collect_steps(turns)) for turns in [*groups, one.turns]]
        live = f"{one.equal} of {one.live} turns" if one.live else "-"
        shown.add_row(one.method, *(f"{mean:.2f}" for mean in means), live)
    return shown
