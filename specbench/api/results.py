"""A run's results as DataFrames, and its report."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from specbench.analysis.loaded_run import LoadedRun, read_run
from specbench.analysis.summary import summarise
from specbench.errors import InputError
from specbench.records.run_directory import expand_paths
from specbench.report import render
from specbench.report.alarms import find_alarms
from specbench.report.folder import choose_folder

TRIALS = [  # columns of `Results.trials`
    "run", "suite", "task", "category", "question_id", "turn", "method", "repeat", "seed", "order", "attempt", "state", "kind",
    "batch", "concurrency", "prompt_tokens", "new_tokens", "finish_reason", "failed", "error", "seconds", "prefill_s", "decode_s",
    "draft_s", "verify_s", "steps", "target_forwards", "draft_forwards", "drafted", "nodes", "depth", "accepted", "committed",
    "peak_memory_bytes", "energy_j", "disturbed", "output_ids", "text", "score",
]  # fmt: skip


@dataclass(frozen=True, eq=False)
class Results:
    """The results of a run. path: its folder."""

    path: Path
    _run: LoadedRun = field(repr=False)

    @property
    def config(self) -> dict[str, Any]:
        """Its settings, as in config.yaml."""
        return self._run.config

    @property
    def provenance(self) -> dict[str, Any]:
        """Where its numbers come from: versions, machine, fingerprints, as in run.json."""
        return self._run.provenance

    @property
    def missing(self) -> dict[str, int]:
        """Turns that are still to be run, by method; empty for a finished run."""
        return self._run.missing

    @cached_property
    def trials(self) -> pd.DataFrame:
        """One row per turn, of the attempt that counts; columns: docs/python.md."""
        written = {(row["method"], row["question_id"], row["turn"]): row for row in self._run.texts}
        keys = self._run.frame[["method", "question_id", "turn"]].itertuples(index=False, name=None)
        first = self._run.frame["repeat"] == 0
        answers = [written.get(key, {}) if one else {} for key, one in zip(keys, first, strict=True)]
        rows = self._run.frame.assign(run=self._run.name)
        told = pd.DataFrame(answers, columns=["text", "score"], index=rows.index)
        rows[["text", "score"]] = told.astype({"text": object, "score": float})
        return rows[TRIALS]

    @cached_property
    def summary(self) -> pd.DataFrame:
        """One row per method and task, and task = overall: the columns of summary.csv (docs/python.md)."""
        return summarise(self._run)

    @cached_property
    def alarms(self) -> list[str]:
        """What is not to be trusted in these numbers, in words."""
        return [str(alarm) for alarm in find_alarms(self._run, self.summary)]


def open_run(folder: str | Path) -> Results:
    """Return the results of a run, finished or not. Raises InputError for a folder that is no run, or holds no trial yet."""
    path = _check_path(folder)
    return Results(path, read_run(path))


def render_report(*runs: Results | str | Path, out: str | Path | None = None) -> render.Report:
    """Render the page, the tables and the figures of runs, as `specbench report` does.

    runs: results, folders of runs, or folders of such folders. out: by default reports/<name of the first>. The Report has
    `page`, `files`, `summary`, `alarms` and, by group of questions, `strata`. Raises InputError.
    """
    paths = [run.path if isinstance(run, Results) else _check_path(run) for run in runs]
    if not paths:
        raise InputError("render_report: expected one run or more")
    return render.render_report(expand_paths(paths), choose_folder(paths[0]) if out is None else _check_path(out))


def _check_path(folder: str | Path) -> Path:
    if not isinstance(folder, (str, Path)) or not str(folder).strip():
        raise InputError(f"expected a folder, found {folder!r}")
    return Path(folder).expanduser()
