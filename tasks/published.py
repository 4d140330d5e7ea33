"""Questions from published data: a YAML says which fields of a row make a question, so a suite needs no code.

Wordings name fields in braces: "Summarize: {article}". Besides the row's own there are {subset} and {row}, its number from 1.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from specbench.errors import InputError, abbreviate
from tasks.answers import COMPARE
from tasks.question import Question, parse_question
from tasks.rows import Row, Rows, read_dataset, read_rows
from tasks.suite import Suite

ADDED = ("subset", "row")  # fields that every row gets
FIELD = re.compile(r"\{(\w+)\}")


class Published(Suite):
    """The rows of `path`, else of `dataset` on the hub.

    path: a file, or a folder with SUBSET/SPLIT.parquet. subset: one or several. turns: the wording of the only turn, or a field
    that holds a list of turns. category: if null or empty, the task. strata: wordings by name, without those whose field a row
    lacks. placeholder: how a text begins that the authors' own program has yet to fill in. score: how an answer is compared with
    the reference; null: not at all.
    """

    def __init__(
        self,
        name: str,
        turns: str,
        task: str,
        category: str | None = None,
        id: str = "{row}",
        reference: str | None = None,
        strata: Mapping[str, str] | None = None,
        path: str | None = None,
        dataset: str | None = None,
        subset: str | list[str] | None = None,
        split: str = "test",
        revision: str | None = None,
        placeholder: str | None = None,
        score: Literal["number", "boxed"] | None = None,
    ) -> None:
        self.name, self.split, self.revision, self._score = name, split, revision, score
        self.path, self.dataset = Path(path).expanduser() if path else None, dataset
        self._wordings = {"question_id": id, "task": task, "category": category or task}
        self._turns, self._reference, self._strata = turns, reference, strata or {}
        self._placeholder = placeholder
        subsets = subset if isinstance(subset, list) else [subset]
        if len(subsets) > 1 and self.path is not None and not self.path.is_dir():
            raise InputError(f"suite.subset={subset}: expected one, the one that the file {path} holds")
        self._questions = [question for one in subsets for question in self._read_subset(one)]
        self._check_questions()
        rows = [asdict(question) for question in self._questions]
        self.fingerprint = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()

    def questions(self) -> list[Question]:
        return self._questions

    def score(self, question: Question, turn: int, text: str) -> float | None:
        """Return 1 if the answer agrees with the reference, else 0."""
        if self._score is None or question.reference is None:
            return None
        return float(COMPARE[self._score](question.reference, text))

    def _read_subset(self, subset: str | None) -> list[Question]:
        questions = []
        for number, (place, row) in enumerate(self._load(subset), start=1):
            try:
                questions.append(self._build_question({"subset": subset, "row": number, **row}))
            except InputError as error:
                raise InputError(f"{place}: {error}") from None
        return questions

    def _load(self, subset: str | None) -> Rows:
        if self.path is not None:
            inside = self.path / (subset or "") / f"{self.split}.parquet"
            return read_rows(inside if self.path.is_dir() else self.path)
        if self.dataset is None:
            raise InputError(f"suite {self.name} needs its data: give suite.path=FILE or suite.dataset=HUB_ID")
        return read_dataset(self.dataset, subset, self.split, self.revision)

    def _build_question(self, row: Row) -> Question:
        names = {name: _fill(wording, row) for name, wording in self._wordings.items()}
        question = parse_question(
            {
                **names,
                "category": names["category"] or names["task"],
                "turns": _list_turns(self._turns, row),
                "reference": _fill(self._reference, row) if self._reference else None,
                "strata": {name: _fill(wording, row) for name, wording in self._strata.items() if _has_fields(wording, row)},
            }
        )
        if self._placeholder and any(turn.startswith(self._placeholder) for turn in question.turns):
            raise InputError("a placeholder; run the authors' program to fill in the data, and give its file as suite.path=FILE")
        return question

    def _check_questions(self) -> None:
        """Raise InputError if there is no question, or if an id is not unique."""
        seen: set[str] = set()
        for question in self._questions:
            if question.id in seen:
                raise InputError(f"suite {self.name}: two rows have the id {question.id!r}")
            seen.add(question.id)
        if not seen:
            raise InputError(f"{self.path or self.dataset}: contains no questions")


def _list_turns(wording: str, row: Row) -> list[Any]:
    """Return the turns of a field that holds a list, else the wording's only one."""
    field = FIELD.fullmatch(wording)
    value = _get(row, field[1]) if field else None
    return value if isinstance(value, list) else [_fill(wording, row)]


def _fill(wording: str, row: Row) -> str:
    return FIELD.sub(lambda found: _to_text(_get(row, found[1])), wording)


def _has_fields(wording: str, row: Row) -> bool:
    return all(row.get(name) not in (None, "") for name in FIELD.findall(wording))


def _get(row: Row, name: str) -> Any:
    if name not in row:
        found = abbreviate([key for key in row if key not in ADDED])
        raise InputError(f"expected a field {name!r}, as this suite's rows have; found {found}")
    return row[name]


def _to_text(value: Any) -> str:
    """Return a field as text: a list's entries on separate lines."""
    if isinstance(value, list):
        return "\n".join(map(_to_text, value))
    return "" if value is None else str(value)
