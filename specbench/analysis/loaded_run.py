"""A run directory, read once for everything in the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from specbench.analysis.disturbance import Reasons, find_disturbed
from specbench.analysis.groups import merge_groups
from specbench.analysis.metrics import build_trial_frame
from specbench.analysis.windows import select_window
from specbench.errors import InputError
from specbench.records.attempts import select_complete, select_counted, select_whole
from specbench.records.certificates import Certification, find_certifications, list_folders, read_certificates
from specbench.records.nested import look_up
from specbench.records.run_directory import RunDirectory
from specbench.records.trial import BASELINE, QuestionId, Trial

EPOCH = "1970-01-01T00:00:00Z"  # of a run that does not record its start, such as an imported one


@dataclass(frozen=True)
class LoadedRun:
    """One run: its name, settings, trials and decoded outputs, if there are any."""

    name: str
    config: dict[str, Any]
    provenance: dict[str, Any]
    trials: list[Trial]  # those that count, of whole questions
    attempts: list[Trial]  # and earlier attempts at blocks that were measured again
    frame: pd.DataFrame  # build_trial_frame(trials)
    texts: list[dict[str, Any]]
    certified: dict[str, Certification]  # by method
    unreadable: list[str]  # certificates that cannot be read
    strata: Mapping[QuestionId, Mapping[str, str]] = field(default_factory=dict)  # of the questions with strata

    @property
    def missing(self) -> dict[str, int]:
        """The number of turns still to be run, by method; empty if the run does not record how many it needs."""
        needed = (self.provenance.get("turns") or 0) * (self.config.get("repeats") or 0)
        finished = Counter(method for method, *_ in {trial.key for trial in self.attempts})
        methods = sorted({*finished, *(self.config.get("method") or {})})
        return {method: needed - finished[method] for method in methods if finished[method] < needed}

    @cached_property
    def turns(self) -> pd.DataFrame:
        """The frame with one row per timed turn: of a question, or of a group, whose questions share one time.

        Under load, of the turns between warm-up and drain.
        """
        counted = {(trial.key, trial.attempt) for trial in select_window(self.trials)}
        return merge_groups(self.frame[[(trial.key, trial.attempt) in counted for trial in self.trials]])

    @cached_property
    def disturbed(self) -> Reasons:
        """The attempts that were disturbed, and by what."""
        return find_disturbed(self.attempts, self.trials)

    @property
    def started(self) -> float:
        """Start of the run, in seconds since 1970."""
        return datetime.fromisoformat(str(self.provenance.get("started") or EPOCH).replace("Z", "+00:00")).timestamp()


def read_run(path: Path, folders: Sequence[Path] | None = None) -> LoadedRun:
    """Read a run and its certificates. folders: of these, by default this checkout's and `certificates` next to the run.

    Raises InputError when the directory is not a run, cannot be read, or holds no trial yet.
    """
    directory = RunDirectory(path)
    attempts = select_complete(directory.read_attempts())
    if not attempts:
        raise InputError(f"{path} holds no trial yet")
    config, provenance = directory.read_config(), directory.read_provenance()
    certificates, unreadable = read_certificates(list_folders(path) if folders is None else folders)
    trials = select_whole(select_counted(attempts))
    if not trials:
        raise InputError(f"{path} holds no question with all its turns yet")
    return LoadedRun(
        name=directory.name,
        config=config,
        provenance=provenance,
        trials=trials,
        attempts=attempts,
        frame=build_trial_frame(trials),
        texts=directory.read_texts(),
        certified=find_certifications(config, provenance, certificates),
        unreadable=unreadable,
        strata={prompt.question_id: prompt.strata for prompt in directory.read_prompts() if prompt.strata},
    )


def find_first(mapping: Mapping[str, Any], *paths: str) -> Any:
    """Return the first scalar under one of the dotted paths, "" if there is none."""
    values = (look_up(mapping, path) for path in paths)
    return next((value for value in values if value not in (None, "") and not isinstance(value, (Mapping, list))), "")


def order_methods(runs: Sequence[LoadedRun]) -> list[str]:
    """Return the methods in the order of rows and colours: autoregressive first, then by label."""
    labels = {trial.method for run in runs for trial in run.trials}
    return sorted(labels, key=lambda label: (label != BASELINE, label))


def pick_trial(runs: Sequence[LoadedRun], method: str) -> dict[str, Any]:
    """Return one of a method's records, for facts that they share, such as whether the method is warm."""
    return next(trial.to_row() for run in runs for trial in run.trials if trial.method == method)


def order_tasks(run: LoadedRun) -> list[str]:
    """Return the tasks in the order of the config's task.*.name, then by name."""
    chosen = (run.config.get("task") or {}).values()
    configured = [task["name"] for task in chosen if task and "name" in task]
    present = {trial.task for trial in run.trials}
    return [task for task in configured if task in present] + sorted(present - set(configured))
