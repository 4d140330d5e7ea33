"""Documents for a datastore, as ids with an end token: from files and Hugging Face data sets, texts or chats."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from specbench.errors import InputError, format_error, suggest_choices
from specbench.models.chat import Chat, render_prompt
from specbench.models.texts import WRONG, Text, iter_exchanges
from specbench.records.files import open_regular

FIELDS = ("messages", "conversations", "text")
Row = Mapping[str, Any]


@dataclass(frozen=True)
class DocumentEncoder:
    """Encodes documents for a target: its tokenizer, its chat format and its number of ids."""

    tokenizer: PreTrainedTokenizerBase
    chat: Chat
    vocabulary: int

    def encode_text(self, text: str) -> list[int]:
        """Encode a plain text; empty for an empty one."""
        return self._add_end(self.tokenizer(text, add_special_tokens=False).input_ids) if text.strip() else []

    def encode_conversation(self, turns: list[tuple[str, str]]) -> list[int]:
        """Encode the last turn's prompt as a run renders it, earlier turns included, and its answer."""
        if not turns:
            return []
        *before, (question, answer) = turns
        prompt = render_prompt(self.chat, [*before, (question, None)], self.tokenizer)
        return self._add_end([*prompt, *self.tokenizer(answer, add_special_tokens=False).input_ids])

    def encode_answer(self, text: Text) -> list[int]:
        """Join the ids of prompt and answer. Raises ValueError for ids outside the vocabulary."""
        ids = [*text.prompt_ids, *text.answer_ids]
        wrong = [id_ for id_ in ids if type(id_) is not int or not 0 <= id_ < self.vocabulary]
        if wrong:
            raise ValueError(f"{wrong[0]!r} is not a token id below {self.vocabulary}")
        return self._add_end(ids)

    def encode_row(self, row: Row, field: str | None) -> list[int]:
        """Encode a row. Raises InputError for a missing field, and one of WRONG for unexpected content."""
        if field is None and "prompt_ids" in row:
            return self.encode_answer(Text(row["prompt_ids"], row["answer_ids"]))
        content = row[_find_field(row, field)]
        if isinstance(content, str):
            return self.encode_text(content)
        if content and all(isinstance(part, str) for part in content):  # UltraChat: alternating turns
            return self.encode_conversation(list(zip(content[::2], content[1::2], strict=False)))
        return self.encode_conversation(list(iter_exchanges(content)))

    def _add_end(self, ids: list[int]) -> list[int]:
        end = self.tokenizer.eos_token_id
        return ids if end is None or ids[-1] == end else [*ids, end]


def read_file(path: Path, field: str | None, encoder: DocumentEncoder) -> Iterator[list[int]]:
    """Yield a document per row of a .jsonl file or entry of a .json list; of any other file one per paragraph.

    Paragraphs end at blank lines. Raises InputError with file and line (.json: the entry's number).
    """
    open_regular(path).close()
    try:
        if path.suffix in (".jsonl", ".json"):
            rows = _read_lines(path) if path.suffix == ".jsonl" else _read_entries(path)
            yield from _encode_rows(rows, str(path), field, encoder)
        else:
            yield from (encoder.encode_text(text) for text in _read_paragraphs(path))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None


def read_dataset(name: str, split: str, field: str | None, encoder: DocumentEncoder) -> Iterator[list[int]]:
    """Yield a document per row of a Hugging Face data set, as a stream. Raises InputError."""
    from datasets import load_dataset  # takes seconds to import

    def rows() -> Iterator[tuple[int, Any]]:
        try:
            yield from enumerate(load_dataset(name, split=split, streaming=True), start=1)
        except Exception as error:  # of the hub, the network or pyarrow, many without their own type
            raise InputError(f"dataset={name} split={split}: cannot be read: {format_error(error)}") from None

    yield from _encode_rows(rows(), f"dataset={name}", field, encoder)


def _encode_rows(rows: Iterator[tuple[int, Any]], place: str, field: str | None, encoder: DocumentEncoder) -> Iterator[list[int]]:
    for number, row in rows:
        try:
            ids = encoder.encode_row(row, field)
        except InputError as error:
            raise InputError(f"{place}:{number}: {error}") from None
        except WRONG as error:
            raise InputError(f"{place}:{number}: expected a text or a chat: {error!r}") from None
        if ids:
            yield ids


def _find_field(row: Row, field: str | None) -> str:
    if field is not None and field not in row:
        raise InputError(f"field={field}: no such field; there is {suggest_choices(field, list(row)) or 'none'}")
    name = field or next((name for name in FIELDS if name in row), None)
    if name is None:
        raise InputError(f"expected {', '.join(FIELDS)} or prompt_ids, found {', '.join(row)}; select another with field=NAME")
    return name


def _read_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield rows with their line numbers; blank lines are skipped."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except (ValueError, RecursionError):  # UnicodeDecodeError included
                    raise InputError(f"{path}:{number}: not valid JSON") from None


def _read_entries(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        entries = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(entries, list):
        raise InputError(f"{path}: expected a list of chats or texts")
    return enumerate(entries, start=1)


def _read_paragraphs(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as lines:
        for blank, paragraph in groupby(lines, key=lambda line: not line.strip()):
            if not blank:
                yield "".join(paragraph)
