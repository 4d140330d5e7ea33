"""Rows of a data file (.jsonl, .json, .parquet, and .gz around the first two) or of a data set on the Hugging Face hub.

Imports no torch. A mistake raises an InputError of one line that begins with the place: file:line, or file:row.
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from specbench.errors import InputError, format_error, suggest_choices
from tasks.question import MOST_BYTES, parse_json, parse_object, read_file, split_lines

Row = Mapping[str, Any]
Rows = list[tuple[str, Row]]  # with the place of each, for messages
KINDS = (".jsonl", ".json", ".parquet", ".jsonl.gz", ".json.gz")


def read_rows(path: Path) -> Rows:
    """Return a file's rows; the suffix decides its format. Raises InputError."""
    kind = "".join(path.suffixes[-2:] if path.suffix == ".gz" else path.suffixes[-1:])
    if kind not in KINDS:
        raise InputError(f"{path}: expected a file that ends with {suggest_choices(kind, KINDS)}")
    content = read_file(path)
    if kind == ".parquet":
        return _number(_parse_parquet(content, path), path)
    if kind.endswith(".gz"):
        content = _unpack(content, path)
    return _parse_lines(content, path) if kind.startswith(".jsonl") else _number(_parse_list(content, path), path)


def read_dataset(name: str, subset: str | None, split: str, revision: str | None) -> Rows:
    """Return the rows of one split of a data set: a hub id or a folder. Raises InputError, also without a network."""
    from datasets import load_dataset  # takes seconds to import
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # it reports every retry
    try:
        rows = list(load_dataset(name, subset, split=split, revision=revision))
    except Exception as error:  # of the hub, the network or pyarrow, many without their own type
        raise InputError(
            f"suite.dataset={name}: cannot be read ({format_error(error)}); give a file as suite.path=FILE"
        ) from None
    return _number(rows, f"suite.dataset={name}")


def _number(rows: list[Any], place: str | Path) -> Rows:
    return [(f"{place}:{number}", row) for number, row in enumerate(rows, start=1)]


def _parse_lines(content: bytes, path: Path) -> Rows:
    rows: Rows = []
    for number, line in split_lines(content):
        try:
            rows.append((f"{path}:{number}", parse_object(line)))
        except InputError as error:
            raise InputError(f"{path}:{number}: {error}") from None
    return rows


def _parse_list(content: bytes, path: Path) -> list[Any]:
    try:
        rows = parse_json(content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path}: expected a list of JSON objects")
    return rows


def _parse_parquet(content: bytes, path: Path) -> list[Any]:
    from pyarrow import ArrowException
    from pyarrow.parquet import read_table

    try:
        rows: list[Any] = read_table(BytesIO(content)).to_pylist()
    except (ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path}: not a parquet file: {format_error(error)}") from None
    return rows


def _unpack(content: bytes, path: Path) -> bytes:
    try:
        with gzip.open(BytesIO(content)) as file:
            unpacked = file.read(MOST_BYTES + 1)
    except (OSError, EOFError) as error:
        raise InputError(f"{path}: not a gzip file: {error}") from None
    if len(unpacked) > MOST_BYTES:
        raise InputError(f"{path}: holds more than {MOST_BYTES:,} bytes")
    return unpacked
