"""Copies of runs whose questions may not be redistributed: hashes replace all prompts and answers.

trials.jsonl loses its output_ids and keeps output_sha256, prompts.jsonl its prompt_ids and keeps sha256, texts.jsonl gets a
sha256 in place of each text. Equal texts have equal hashes, so a copy's report has the original's numbers, `identical` included.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from specbench.errors import InputError
from specbench.records.files import read_bytes, write_atomic
from specbench.records.run_directory import RunDirectory

MARK = "stripped"  # of run.json


def strip_run(path: Path, folder: Path) -> Path:
    """Copy a run into a folder, under its own name, without any text.

    Raises InputError if the copy exists or this is not a run.
    """
    run, copy = RunDirectory(path), RunDirectory(folder / path.resolve().name)
    if copy.path.exists():
        raise InputError(f"--out {folder}: {copy.path} already exists; choose another folder")
    run.read_config()
    provenance = {**run.read_provenance(), MARK: True}
    trials = [{**trial.to_row(), "output_ids": None} for trial in run.read_attempts()]
    prompts = [{**dataclasses.asdict(prompt), "prompt_ids": None} for prompt in run.read_prompts()]
    texts = list(map(_strip_text, run.read_texts()))
    copy.write_provenance(provenance)
    for name, rows in (("prompts", prompts), ("trials", trials), ("texts", texts)):
        write_atomic(copy.path / f"{name}.jsonl", format_rows(rows))
    if (path / "summary.csv").is_file():
        write_atomic(copy.path / "summary.csv", read_bytes(path / "summary.csv"))
    write_atomic(copy.path / "config.yaml", name_files(read_bytes(path / "config.yaml")))  # last: a torn copy is not a run
    return copy.path


def name_files(config: bytes) -> str:
    """Return a config that names its suite by the file alone: the folder is private."""
    settings = yaml.safe_load(config)
    suite = settings.get("suite")
    if isinstance(suite, dict) and suite.get("path"):
        suite["path"] = Path(suite["path"]).name
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)


def _strip_text(row: Mapping[str, Any]) -> dict[str, Any]:
    text = row["text"]
    return {**row, "text": None, "sha256": hashlib.sha256(text.encode()).hexdigest()} if text is not None else dict(row)


def format_rows(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return the lines of a file of rows."""
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n" for row in rows)


def check_texts(provenance: Mapping[str, Any], setting: str) -> None:
    """Raise InputError if a run holds no texts. setting: the one that named the run, for the message."""
    if provenance.get(MARK):
        raise InputError(f"{setting}: holds hashes in place of its texts; expected the original run")
