"""The run directory: config.yaml, run.json, prompts.jsonl, trials.jsonl, texts.jsonl (decoded answers with scores), summary.csv.

Whole files are written under a temporary name and renamed. Lines are appended and synced one at a time, so a killed run loses at
most its current turn. Reading drops a torn last line; `repair()` cuts it off before a run is resumed.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

import yaml

from specbench.errors import InputError, escape_controls
from specbench.records.attempts import select_counted
from specbench.records.documents import AnswerText, Config, read_provenance, read_yaml
from specbench.records.files import JsonLines, read_bytes, write_atomic
from specbench.records.moved import translate_targets
from specbench.records.names import split_numbers
from specbench.records.trial import Prompt, QuestionId, Trial
from specbench.records.trial_rules import Groups, Origins, Prompts, Questions, Turns, parse_trial
from specbench.records.typed import check

Row = TypeVar("Row")
COPIED = ("run.json", "prompts.jsonl", "trials.jsonl", "texts.jsonl", "summary.csv", "config.yaml")

LOGS = "servers"  # folder of the servers' logs


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
        return escape_controls(self.path.resolve().name)

    def is_new(self) -> bool:
        """Return whether the directory is missing or empty, apart from hidden files and logs of servers that did not start."""
        if not self.path.is_dir():
            return not self.path.exists()
        return all(path.name[0] == "." or path.name == LOGS for path in self.path.iterdir())

    def is_run(self) -> bool:
        """Return whether a run was started here."""
        return (self.path / "config.yaml").is_file()

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write the resolved config: plain dicts, lists and scalars."""
        text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
        write_atomic(self.path / "config.yaml", text)

    def read_config(self) -> dict[str, Any]:
        """Return the config with current class paths. Raises InputError if this is not a run or the file cannot be read."""
        config: dict[str, Any] = translate_targets(read_yaml(self._find_file("config.yaml"), Config))
        return config

    def write_provenance(self, run: Mapping[str, Any]) -> None:
        """Write run.json, before the first trial."""
        write_atomic(self.path / "run.json", json.dumps(run, indent=2, ensure_ascii=False) + "\n")

    def read_provenance(self) -> dict[str, Any]:
        """Return run.json. Raises InputError if this is not a run or the file cannot be read."""
        return read_provenance(self._find_file("run.json"))

    def append_trials(self, *trials: Trial) -> None:
        """Append one turn's lines to trials.jsonl, one per question of its group; they are on disk when this returns."""
        self._trials.append(*(trial.to_row() for trial in trials))

    def read_trials(self) -> list[Trial]:
        """Return one trial per turn, of its block's last complete attempt. Raises InputError with file:line."""
        return select_counted(self.read_attempts())

    def read_attempts(self) -> list[Trial]:
        """Return all complete trials, with every attempt at blocks that were measured again. Raises InputError with file:line."""
        rules = (self._build_origins(), Questions(), Prompts(), Turns(), Groups())

        def parse(row: dict[str, Any]) -> Trial:
            trial = parse_trial(row)
            for rule in rules:
                rule.check(trial)
            return trial

        return list(_parse_rows(self._trials, parse))

    def copy_to(self, folder: Path) -> None:
        """Copy the run's own files, never the targets of links; config.yaml comes last, so that a torn copy is not a run."""
        for name in COPIED:
            path = self.path / name
            if path.is_file() and not path.is_symlink():
                write_atomic(folder / name, read_bytes(path))

    def repair(self) -> None:
        """Cut off torn last lines before a run is resumed."""
        self._trials.repair()
        self._drop_broken_group()
        self._drop_broken_pass()
        self._prompts.repair()
        self._texts.repair()

    def _drop_broken_group(self) -> None:
        """Drop the last group's lines if a kill prevented some: they all share the group's time."""
        rows = [row for _, row in self._trials.read_numbered()]
        last = rows[-1] if rows else {}
        if last.get("group") is not None:
            turn = ("method", "repeat", "group", "turn", "attempt")
            same = list(takewhile(lambda row: all(row.get(key) == last.get(key) for key in turn), reversed(rows)))
            if len(same) % last["batch"]:  # a warm method may have the same turn twice, one after the other
                self._trials.drop_last(len(same) % last["batch"])

    def _drop_broken_pass(self) -> None:
        """Drop the last pass under load if a kill prevented some of its lines: they are written together once all are done."""
        rows = [row for _, row in self._trials.read_numbered()]
        last = rows[-1] if rows else {}
        if (last.get("concurrency") or 1) > 1 and (turns := self.read_provenance().get("turns")):
            same = list(takewhile(lambda row: all(row.get(key) == last.get(key) for key in ("method", "repeat")), reversed(rows)))
            if len(same) < turns:
                self._trials.drop_last(len(same))

    def append_prompt(self, prompt: Prompt) -> None:
        """Append one line to prompts.jsonl."""
        self._prompts.append(dataclasses.asdict(prompt))

    def read_prompts(self) -> list[Prompt]:
        """Return all complete prompts. Raises InputError with file:line."""
        return list(_parse_rows(self._prompts, Prompt.from_row))

    def append_text(self, method: str, question_id: QuestionId, turn: int, text: str, score: float | None) -> None:
        """Append one line to texts.jsonl: the decoded answer and its score in [0, 1], if the suite can score it."""
        value = None if score is None else float(score)
        row = {"method": method, "question_id": question_id, "turn": turn, "text": text, "score": value}
        self._texts.append(_parse_text(row))

    def read_texts(self) -> list[dict[str, Any]]:
        """Return decoded outputs of the first repeat as rows {method, question_id, turn, text, score}, an AnswerText each.

        Raises InputError with file:line.
        """
        origins = self._build_origins()

        def parse(row: dict[str, Any]) -> dict[str, Any]:
            text = _parse_text(row)
            origins.check_method(text["method"])
            return text

        return list(_parse_rows(self._texts, parse))

    def write_summary(self, csv: str) -> None:
        """Write summary.csv."""
        write_atomic(self.path / "summary.csv", csv)

    def _build_origins(self) -> Origins:
        return Origins(self.read_config().get("method") or ())

    def _find_file(self, name: str) -> Path:
        path = self.path / name
        if not path.is_file():
            raise InputError(f"{self.path} is not a run directory: it has no {name}")
        return path


def find_runs(folder: Path) -> list[Path]:
    """Return the finished runs in a folder and its subfolders, such as those of a sweep; the folder may itself be a run."""
    runs = [path.parent for path in folder.rglob("summary.csv") if RunDirectory(path.parent).is_run()]
    return sorted(runs, key=lambda run: split_numbers(str(run)))


def expand_paths(paths: Sequence[Path]) -> list[Path]:
    """Replace each path by the finished runs in it, if there are any."""
    return [run for path in paths for run in find_runs(path) or [path]]


def _parse_rows(lines: JsonLines, parse: Callable[[dict[str, Any]], Row]) -> Iterator[Row]:
    """Parse all complete rows. Raises InputError with file:line."""
    for number, row in lines.read_numbered():
        try:
            yield parse(row)
        except InputError as problem:
            raise InputError(f"{lines.path}:{number}: {problem}") from None


def _parse_text(row: dict[str, Any]) -> dict[str, Any]:
    check(row, AnswerText, "")
    if (row["text"] is None) != ("sha256" in row):
        raise InputError("expected a text, or null and its sha256")
    return row
