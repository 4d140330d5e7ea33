"""What a run leaves on disk: the trial record and the run directory.

A run directory holds config.yaml, run.json, prompts.jsonl, trials.jsonl, texts.jsonl (the decoded answers and their scores) and
summary.csv. Whole files are written under a temporary name and renamed; lines are appended and synced one at a time, so a run
that is killed loses at most the turn it was in. Reading drops a torn last line; `repair()` cuts it off before a run goes on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from specbench.errors import InputError

SCHEMA = 1
PER_STEP = ("drafted", "nodes", "depth", "accepted", "committed")  # lists of a trial

QuestionId = int | str
TrialKey = tuple[str, int, QuestionId, int]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One turn of one question by one method: counts, seconds and ids. Ratios are made later, from counts."""

    schema: int = SCHEMA
    run_id: str
    suite: str
    task: str
    category: str
    question_id: QuestionId
    turn: int
    context: str  # reference: turn 2 continues from autoregressive's answer; own: from the method's own
    method: str  # the label
    seed: int
    repeat: int
    order: int  # position inside the block
    state: str  # cold | warm
    kind: str = "measured"  # | synthetic: the drafts were made from the answer itself | replayed: counts alone | imported
    prompt_tokens: int
    prompt_sha256: str
    new_tokens: int
    finish_reason: str  # eos | length | capacity | error
    steps: int | None = None
    target_forwards: int | None = None
    draft_forwards: int | None = None
    drafted: list[int] | None = None  # per step: draft nodes, root and scratch not counted
    nodes: list[int] | None = None  # per step: all rows computed
    depth: list[int] | None = None  # per step: deepest draft
    accepted: list[int] | None = None  # per step
    committed: list[int] | None = None  # per step, after the EOS and length cut
    prefill_s: float | None = None
    decode_s: float | None = None
    draft_s: float | None = None
    verify_s: float | None = None
    output_ids: list[int] | None = None
    output_sha256: str | None = None
    retokenised: int | None = None
    peak_memory_bytes: int | None = None
    energy_j: float | None = None  # of the whole card or processor
    throttled: list[str] | None = None  # why clocks were held down during the turn; None: nobody says
    error: str | None = None

    @property
    def key(self) -> TrialKey:
        """What makes a trial unique inside a run."""
        return (self.method, self.repeat, self.question_id, self.turn)

    @property
    def failed(self) -> bool:
        """An error row: it has no speed."""
        return self.finish_reason == "error" or self.error is not None

    def to_row(self) -> dict[str, Any]:
        """The record as a JSON object, every field present."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Trial:
        """Raises InputError on another schema version, an unknown or a missing field."""
        if row.get("schema") != SCHEMA:
            raise InputError(f"schema version {row.get('schema')!r}, this specbench reads version {SCHEMA}")
        fields = dataclasses.fields(cls)
        unknown = sorted(set(row) - {field.name for field in fields})
        needed = (field.name for field in fields if field.default is dataclasses.MISSING)
        missing = [name for name in needed if name not in row]
        if unknown or missing:
            raise InputError(f"not a trial: unknown fields {unknown}, missing fields {missing}")
        return cls(**row)


def imported(
    *,
    run_id: str,
    suite: str,
    task: str,
    category: str,
    question_id: QuestionId,
    turn: int,
    method: str,
    new_tokens: int,
    finish_reason: str,
    output_sha256: str,
) -> Trial:
    """A turn that another program ran, of which no more is known; dataclasses.replace() adds what is."""
    return Trial(
        run_id=run_id,
        suite=suite,
        task=task,
        category=category,
        question_id=question_id,
        turn=turn,
        context="own",
        method=method,
        seed=0,
        repeat=0,
        order=0,
        state="cold",
        kind="imported",
        prompt_tokens=0,
        prompt_sha256="",
        new_tokens=new_tokens,
        finish_reason=finish_reason,
        output_sha256=output_sha256,
    )


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """The ids a turn started from; `method` is set only where every method has its own context."""

    question_id: QuestionId
    turn: int
    prompt_ids: list[int]
    sha256: str
    method: str | None = None


def ids_sha256(ids: Sequence[int]) -> str:
    """Fingerprint of token ids: sha256 of their decimal numbers joined by commas."""
    return hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()


def write_atomic(path: Path, content: str | bytes) -> None:
    """Writes the whole file or nothing: a temporary name in the same directory, synced, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


class JsonLines:
    """A file of one JSON object a line that may be killed while it writes the last one."""

    def __init__(self, path: Path):
        self.path = path

    def append(self, row: Mapping[str, Any]) -> None:
        """Writes one line and waits until it is on the disk."""
        line = json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"
        with self.path.open("ab") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())

    def numbered(self, torn: bool = True) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yields (line number, row), not blank lines; InputError on a broken line, unless it is the last and may be torn."""
        lines = self._lines()
        for number, line in enumerate(lines, start=1):
            row = _parse(line)
            if row is not None:
                yield number, row
            elif line.strip() and not (torn and number == len(lines)):
                raise InputError(f"{self.path}:{number}: not a JSON object")

    def repair(self) -> None:
        """Cuts a torn last line off, so that the next append starts on a line of its own."""
        lines = self._lines()
        if not lines:
            return
        if _parse(lines[-1]) is None:
            os.truncate(self.path, self.path.stat().st_size - len(lines[-1]))
        elif not lines[-1].endswith(b"\n"):
            with self.path.open("ab") as file:
                file.write(b"\n")

    def _lines(self) -> list[bytes]:
        return self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:  # JSONDecodeError and UnicodeDecodeError are both ValueErrors
        return None
    return row if isinstance(row, dict) else None


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

    def config(self) -> dict[str, Any]:
        """Raises InputError when the directory is not a run or the file cannot be read."""
        return _mapping(self._file("config.yaml"), yaml.safe_load, yaml.YAMLError)

    def write_provenance(self, run: Mapping[str, Any]) -> None:
        """run.json, written before the first trial."""
        write_atomic(self.path / "run.json", json.dumps(run, indent=2, ensure_ascii=False) + "\n")

    def provenance(self) -> dict[str, Any]:
        """Raises InputError when the directory is not a run or the file cannot be read."""
        return _mapping(self._file("run.json"), json.loads, ValueError)

    def append(self, trial: Trial) -> None:
        """One line to trials.jsonl, on the disk when this returns."""
        self._trials.append(trial.to_row())

    def trials(self) -> list[Trial]:
        """All whole trials; of a turn that was run again the last. Raises InputError naming file:line."""
        self._file("config.yaml")
        trials = (self._trial(number, row) for number, row in self._trials.numbered())
        return list({trial.key: trial for trial in trials}.values())

    def repair(self) -> None:
        """Cuts torn last lines off before a run goes on."""
        self._trials.repair()
        self._prompts.repair()
        self._texts.repair()

    def append_prompt(self, prompt: Prompt) -> None:
        """One line to prompts.jsonl."""
        self._prompts.append(dataclasses.asdict(prompt))

    def prompts(self) -> list[Prompt]:
        """All whole prompts. Raises InputError naming file:line."""
        return [self._prompt(number, row) for number, row in self._prompts.numbered()]

    def append_text(self, method: str, question_id: QuestionId, turn: int, text: str, score: float | None) -> None:
        """One line to texts.jsonl: the decoded answer and its task accuracy in [0, 1], where the suite can score it."""
        self._texts.append({"method": method, "question_id": question_id, "turn": turn, "text": text, "score": score})

    def texts(self) -> list[dict[str, Any]]:
        """Decoded outputs of the first repeat, rows {method, question_id, turn, text, score}; empty when there are none."""
        return [row for _, row in self._texts.numbered()]

    def write_summary(self, csv: str) -> None:
        """summary.csv, whole."""
        write_atomic(self.path / "summary.csv", csv)

    def _trial(self, number: int, row: dict[str, Any]) -> Trial:
        try:
            return Trial.from_row(row)
        except InputError as problem:
            raise InputError(f"{self._trials.path}:{number}: {problem}") from None

    def _prompt(self, number: int, row: dict[str, Any]) -> Prompt:
        try:
            return Prompt(**row)
        except TypeError:
            raise InputError(f"{self._prompts.path}:{number}: not a prompt: fields {sorted(row)}") from None

    def _file(self, name: str) -> Path:
        path = self.path / name
        if not path.is_file():
            raise InputError(f"{self.path} is not a run directory: it has no {name}")
        return path


def runs_below(folder: Path) -> list[Path]:
    """The finished runs in a folder, such as a sweep's, and the folders in it; a run itself is one."""
    return sorted(path.parent for path in folder.rglob("summary.csv") if RunDirectory(path.parent).is_run())


def runs_of(paths: Sequence[Path]) -> list[Path]:
    """Of each path the finished runs in it, or else itself."""
    return [run for path in paths for run in runs_below(path) or [path]]


def _mapping(path: Path, load: Any, broken: type[Exception]) -> dict[str, Any]:
    try:
        content = load(path.read_text(encoding="utf-8"))
    except (broken, UnicodeDecodeError):
        raise InputError(f"{path}: cannot be read") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a mapping, found {type(content).__name__}")
    return content
