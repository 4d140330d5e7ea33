"""What a run leaves on disk: the trial record and the run directory.

A run directory holds config.yaml, run.json, prompts.jsonl, trials.jsonl, texts.jsonl (the decoded answers and their scores) and
summary.csv. Whole files are written under a temporary name and renamed; lines are appended and synced one at a time, so a run
that is killed loses at most the turn it was in. Reading drops a torn last line; `repair()` cuts it off before a run goes on.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from specbench.errors import InputError
from specbench.records.files import JsonLines, write_atomic
from specbench.records.moved import translate_targets
from specbench.records.trial import Prompt, QuestionId, Trial


class RunDirectory:
    """The files of one run. Nothing is created before the first write."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._trials = JsonLines(self.path / "trials.jsonl")
        self._prompts = JsonLines(self.path / "prompts.jsonl")
        self._texts = JsonLines(self.path / "texts.jsonl")

    @property
    def name(self) -> str:
        """The directory's own name."""
        return self.path.resolve().name

    def is_new(self) -> bool:
        """True when nothing lies here yet, hidden files aside."""
        return not self.path.exists() or (self.path.is_dir() and all(path.name[0] == "." for path in self.path.iterdir()))

    def is_run(self) -> bool:
        """True when a run was started here."""
        return (self.path / "config.yaml").is_file()

    def write_config(self, config: Mapping[str, Any]) -> None:
        """The resolved config, plain dicts, lists and scalars."""
        text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
        write_atomic(self.path / "config.yaml", text)

    def read_config(self) -> dict[str, Any]:
        """With classes as they are called today. Raises InputError when it is not a run or the file cannot be read."""
        config: dict[str, Any] = translate_targets(_read_mapping(self._find_file("config.yaml"), yaml.safe_load, yaml.YAMLError))
        return config

    def write_provenance(self, run: Mapping[str, Any]) -> None:
        """run.json, written before the first trial."""
        write_atomic(self.path / "run.json", json.dumps(run, indent=2, ensure_ascii=False) + "\n")

    def read_provenance(self) -> dict[str, Any]:
        """Raises InputError when the directory is not a run or the file cannot be read."""
        return _read_mapping(self._find_file("run.json"), json.loads, ValueError)

    def append_trial(self, trial: Trial) -> None:
        """One line to trials.jsonl, on the disk when this returns."""
        self._trials.append(trial.to_row())

    def read_trials(self) -> list[Trial]:
        """All whole trials; of a turn that was run again the last. Raises InputError naming file:line."""
        self._find_file("config.yaml")
        trials = (self._parse_trial(number, row) for number, row in self._trials.read_numbered())
        return list({trial.key: trial for trial in trials}.values())

    def repair(self) -> None:
        """Cuts torn last lines off before a run goes on."""
        self._trials.repair()
        self._prompts.repair()
        self._texts.repair()

    def append_prompt(self, prompt: Prompt) -> None:
        """One line to prompts.jsonl."""
        self._prompts.append(dataclasses.asdict(prompt))

    def read_prompts(self) -> list[Prompt]:
        """All whole prompts. Raises InputError naming file:line."""
        return [self._parse_prompt(number, row) for number, row in self._prompts.read_numbered()]

    def append_text(self, method: str, question_id: QuestionId, turn: int, text: str, score: float | None) -> None:
        """One line to texts.jsonl: the decoded answer and its task accuracy in [0, 1], where the suite can score it."""
        self._texts.append({"method": method, "question_id": question_id, "turn": turn, "text": text, "score": score})

    def read_texts(self) -> list[dict[str, Any]]:
        """Decoded outputs of the first repeat, rows {method, question_id, turn, text, score}; empty when there are none."""
        return [row for _, row in self._texts.read_numbered()]

    def write_summary(self, csv: str) -> None:
        """summary.csv, whole."""
        write_atomic(self.path / "summary.csv", csv)

    def _parse_trial(self, number: int, row: dict[str, Any]) -> Trial:
        try:
            return Trial.from_row(row)
        except InputError as problem:
            raise InputError(f"{self._trials.path}:{number}: {problem}") from None

    def _parse_prompt(self, number: int, row: dict[str, Any]) -> Prompt:
        try:
            return Prompt(**row)
        except TypeError:
            raise InputError(f"{self._prompts.path}:{number}: not a prompt: fields {sorted(row)}") from None

    def _find_file(self, name: str) -> Path:
        path = self.path / name
        if not path.is_file():
            raise InputError(f"{self.path} is not a run directory: it has no {name}")
        return path


def find_runs(folder: Path) -> list[Path]:
    """The finished runs in a folder, such as a sweep's, and the folders in it; a run itself is one."""
    return sorted(path.parent for path in folder.rglob("summary.csv") if RunDirectory(path.parent).is_run())


def expand_paths(paths: Sequence[Path]) -> list[Path]:
    """Of each path the finished runs in it, or else itself."""
    return [run for path in paths for run in find_runs(path) or [path]]


def _read_mapping(path: Path, load: Any, broken: type[Exception]) -> dict[str, Any]:
    try:
        content = load(path.read_text(encoding="utf-8"))
    except (broken, UnicodeDecodeError):
        raise InputError(f"{path}: cannot be read") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a mapping, found {type(content).__name__}")
    return content
