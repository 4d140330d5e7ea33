"""Where a datastore's documents come from: files and Hugging Face data sets, chats in their usual forms; ids with an end."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from specbench.errors import InputError, format_error, suggest_choices
from specbench.models.chat import render_prompt
from specbench.models.texts import WRONG, Text, iter_exchanges

FIELDS = ("messages", "conversations", "text")
Row = Mapping[str, Any]


@dataclass(frozen=True)
class DocumentEncoder:
    """How a target writes: its tokenizer, its chat format (prompts.FORMATS) and how many ids it has."""

    tokenizer: PreTrainedTokenizerBase
    chat: str
    vocabulary: int

    def encode_text(self, text: str) -> list[int]:
        """The ids of a text as it is, none for an empty one."""
        return self._add_end(self.tokenizer(text, add_special_tokens=False).input_ids) if text.strip() else []

    def encode_conversation(self, turns: list[tuple[str, str]]) -> list[int]:
        """The last turn's prompt, as a run would give it, which holds all earlier turns, and its answer."""
        if not turns:
            return []
        *before, (asked, answer) = turns
        prompt = render_prompt(self.chat, [*before, (asked, None)], self.tokenizer)
        return self._add_end([*prompt, *self.tokenizer(answer, add_special_tokens=False).input_ids])

    def encode_answer(self, text: Text) -> list[int]:
        """Prompt and answer that are ids already. Raises ValueError for ids out of the vocabulary."""
        ids = [*text.prompt_ids, *text.answer_ids]
        wrong = [one for one in ids if type(one) is not int or not 0 <= one < self.vocabulary]
        if wrong:
            raise ValueError(f"{wrong[0]!r} is no token id below {self.vocabulary}")
        return self._add_end(ids)

    def encode_row(self, row: Row, field: str | None) -> list[int]:
        """A row's document. Raises InputError for a field that it lacks, and one of WRONG for one of another form."""
        if field is None and "prompt_ids" in row:
            return self.encode_answer(Text(row["prompt_ids"], row["answer_ids"]))
        content = row[_find_field(row, field)]
        if isinstance(content, str):
            return self.encode_text(content)
        if content and all(isinstance(part, str) for part in content):  # UltraChat's: by turns
            return self.encode_conversation(list(zip(content[::2], content[1::2], strict=False)))
        return self.encode_conversation(list(iter_exchanges(content)))

    def _add_end(self, ids: list[int]) -> list[int]:
        end = self.tokenizer.eos_token_id
        return ids if end is None or ids[-1] == end else [*ids, end]


def read_file(path: Path, field: str | None, writing: DocumentEncoder) -> Iterator[list[int]]:
    """A document per row of a .jsonl file or of the list in a .json file; of any other file one per paragraph.

    Paragraphs end at blank lines. Raises InputError with file and line (.json: the number of the entry).
    """
    try:
        if path.suffix in (".jsonl", ".json"):
            rows = _read_lines(path) if path.suffix == ".jsonl" else _read_entries(path)
            yield from _encode_rows(rows, str(path), field, writing)
        else:
            yield from (writing.encode_text(text) for text in _read_paragraphs(path))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None


def read_dataset(name: str, split: str, field: str | None, writing: DocumentEncoder) -> Iterator[list[int]]:
    """A document per row, read as a stream, so that nothing is kept. Raises InputError."""
    from datasets import load_dataset  # type: ignore[import-untyped]  # takes seconds: only where it is needed

    def rows() -> Iterator[tuple[int, Any]]:
        try:
            yield from enumerate(load_dataset(name, split=split, streaming=True), start=1)
        except Exception as error:  # the hub's, the network's, pyarrow's own, many of them bare
            raise InputError(f"dataset={name} split={split}: cannot be read: {format_error(error)}") from None

    yield from _encode_rows(rows(), f"dataset={name}", field, writing)


def _encode_rows(rows: Iterator[tuple[int, Any]], place: str, field: str | None, writing: DocumentEncoder) -> Iterator[list[int]]:
    for number, row in rows:
        try:
            ids = writing.encode_row(row, field)
        except InputError as error:
            raise InputError(f"{place}:{number}: {error}") from None
        except WRONG as error:
            raise InputError(f"{place}:{number}: expected a text or a chat: {error!r}") from None
        if ids:
            yield ids


def _find_field(row: Row, field: str | None) -> str:
    if field is not None and field not in row:
        raise InputError(f"field={field}: no such field; there is {suggest_choices(field, list(row)) or 'none'}")
    found = field or next((name for name in FIELDS if name in row), None)
    if found is None:
        raise InputError(f"expected {', '.join(FIELDS)} or prompt_ids, found {', '.join(row)}; field=NAME takes another")
    return found


def _read_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Rows with the numbers of their lines; blank lines are skipped."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except ValueError:  # UnicodeDecodeError is one too
                    raise InputError(f"{path}:{number}: not valid JSON") from None


def _read_entries(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        entries = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(entries, list):
        raise InputError(f"{path}: expected a list of chats or texts")
    return enumerate(entries, start=1)


def _read_paragraphs(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as lines:
        for blank, paragraph in groupby(lines, key=lambda line: not line.strip()):
            if not blank:
                yield "".join(paragraph)
