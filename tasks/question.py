"""Questions in Spec-Bench's JSONL schema (question_id, category, turns, reference), plus task and strata: reading, subsampling.

A mistake in a file raises an InputError of one line that begins with file:line.
"""

from __future__ import annotations

import json
import random
from codecs import BOM_UTF8
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from specbench.errors import InputError, show_value, suggest_choices

MT_BENCH = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
SINGLE_TURN = ("translation", "summarization", "qa", "math_reasoning", "rag")
MOST_BYTES = 2**30
LONGEST_NAME = 200  # characters of an id, a category or a task
ALL_TASKS = "overall"  # the tables' name for all tasks together
STRATA = ("category", "turns per question", "turn", "prompt tokens")  # the reports' own
TASK_OF_CATEGORY = dict.fromkeys(MT_BENCH, "mt_bench") | {category: category for category in SINGLE_TURN}


@dataclass(frozen=True)
class Question:
    """One conversation: the user's turns. `reference` is text, or JSON text where the source has a list.

    strata: what else groups questions, by name: language, difficulty, length bucket.
    """

    id: str
    task: str
    category: str
    turns: tuple[str, ...]
    reference: str | None = None
    strata: Mapping[str, str] = field(default_factory=dict, hash=False)


def read_questions(path: str | Path) -> list[Question]:
    """Return a JSONL file's questions in order; blank lines are skipped. Raises InputError (file:line)."""
    return parse_questions(read_file(Path(path)), path)


def read_file(path: Path) -> bytes:
    """Return a file's content. Raises InputError for a pipe or a device, which may have no end, and for too large a file."""
    if not path.exists():
        raise InputError(f"{path}: cannot be read: no such file")
    if not path.is_file():
        raise InputError(f"{path}: cannot be read (expected a file, not a folder, a pipe or a device)")
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    if len(content) > MOST_BYTES:
        raise InputError(f"{path}: holds more than {MOST_BYTES:,} bytes")
    return content


def parse_questions(content: bytes, path: str | Path) -> list[Question]:
    """Return the questions in a JSONL file's content. Raises InputError (file:line)."""
    questions: list[Question] = []
    line_of_id: dict[str, int] = {}
    for number, line in split_lines(content):
        try:
            question = parse_question(parse_object(line))
            if question.id in line_of_id:
                raise InputError(f"question_id {question.id!r} is already used on line {line_of_id[question.id]}")
        except InputError as error:
            raise InputError(f"{path}:{number}: {error}") from None
        line_of_id[question.id] = number
        questions.append(question)
    if not questions:
        raise InputError(f"{path}: no questions in this file")
    return questions


def split_lines(content: bytes) -> list[tuple[int, bytes]]:
    """Return the lines that are not blank, each with its number."""
    return [(number, line) for number, line in enumerate(content.split(b"\n"), start=1) if line.strip()]


def subsample(questions: Sequence[Question], limit: int | None, seed: int) -> list[Question]:
    """Return at most `limit` questions per task (None: all), spread evenly over its categories, in file order.

    The result is the same in every process, and nested: a smaller limit's questions are among a larger one's.
    """
    if limit is None:
        return list(questions)
    if limit < 1:
        raise InputError(f"limit is {limit}, expected at least 1 question per task, or null for all")
    members: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, question in enumerate(questions):
        members[question.task][question.category].append(index)
    kept = {index for task in members for index in _draw(task, members[task], seed)[:limit]}
    return [question for index, question in enumerate(questions) if index in kept]


def _draw(task: str, members: dict[str, list[int]], seed: int) -> list[int]:
    """Return the task's question indices in drawing order: one of each category in turn, shuffled by seed."""
    # random.Random hashes a str with SHA-512, so the draw does not depend on the process.
    categories = random.Random(f"{seed}/{task}").sample(list(members), len(members))
    shuffled = [random.Random(f"{seed}/{task}/{name}").sample(members[name], len(members[name])) for name in categories]
    return [index for drawn in zip_longest(*shuffled) for index in drawn if index is not None]


def parse_object(line: bytes) -> dict[str, Any]:
    """Parse a line as a JSON object. Raises InputError."""
    row = parse_json(line)
    if not isinstance(row, dict):
        raise InputError(f"expected a JSON object, got {type(row).__name__}")
    return row


def parse_json(content: bytes) -> Any:
    """Parse JSON whose texts can all be encoded (a lone surrogate cannot). Raises InputError."""
    if content.startswith(BOM_UTF8):
        raise InputError("starts with a byte order mark; save the file as UTF-8 without one")
    try:
        value = json.loads(content.decode(), object_pairs_hook=_build_object, parse_constant=_refuse_constant)
        json.dumps(value, ensure_ascii=False).encode()
        return value
    except json.JSONDecodeError as error:
        raise InputError(f"not valid JSON: {error.msg} at column {error.colno}") from None
    except UnicodeDecodeError:
        raise InputError("not UTF-8") from None
    except UnicodeEncodeError:
        raise InputError("a text holds half of a surrogate pair, which is not valid Unicode") from None
    except RecursionError:
        raise InputError("not valid JSON: nested too deeply") from None
    except ValueError as error:  # a number with thousands of digits
        raise InputError(f"not valid JSON: {error}") from None


def _build_object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    row = dict(pairs)
    if len(row) < len(pairs):
        twice = next(key for number, (key, _) in enumerate(pairs) if key in dict(pairs[:number]))
        raise InputError(f"the field {twice!r} is given twice")
    return row


def _refuse_constant(name: str) -> None:
    raise InputError(f"not valid JSON: {name} is not a number")


def parse_question(row: Mapping[str, object]) -> Question:
    """Return the question of a row. Raises InputError."""
    for name in ("question_id", "category", "turns"):
        if name not in row:
            raise InputError(f"field {name!r} is missing; expected question_id, category and turns")
    category, task = _parse_category(row)
    turns, reference = _parse_turns(row["turns"]), _parse_reference(row.get("reference"))
    return Question(_parse_id(row["question_id"]), task, category, turns, reference, _parse_strata(row.get("strata")))


def _parse_id(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, str)) or not str(value).strip():
        raise InputError(f"question_id is {show_value(repr(value))}, expected a whole number or a non-empty string")
    return _check_name(str(value), "question_id")


def _check_name(value: object, field: str) -> str:
    """Return a text that names something in tables and files: a short single line."""
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{field} is {show_value(repr(value))}, expected a non-empty string")
    if len(value) > LONGEST_NAME or not value.isprintable():
        raise InputError(f"{field} is {show_value(ascii(value))}, expected at most {LONGEST_NAME} printable characters")
    return value


def _parse_category(row: Mapping[str, object]) -> tuple[str, str]:
    """Return category and task. A row's own `task` wins and allows any category; otherwise Spec-Bench's category decides."""
    category, task = _check_name(row["category"], "category"), row.get("task")
    if task == ALL_TASKS:
        raise InputError(f"task is {ALL_TASKS}, which means all tasks; expected another name")
    if task is not None:
        return category, _check_name(task, "task")
    if category not in TASK_OF_CATEGORY:
        known = suggest_choices(category, list(TASK_OF_CATEGORY))
        given = show_value(repr(category))
        raise InputError(f"unknown category {given}, expected {known}; or name the row's own task in 'task'")
    return category, TASK_OF_CATEGORY[category]


def _parse_turns(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise InputError("turns must be a list of at least one text")
    for number, turn in enumerate(value, start=1):
        if not isinstance(turn, str):
            raise InputError(f"turn {number} is {type(turn).__name__}, expected a text")
        if not turn.strip():
            raise InputError(f"turn {number} is empty")
    return tuple(value)


def _parse_reference(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _parse_strata(value: object) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InputError(f"strata is {show_value(repr(value))}, expected a mapping such as {{'language': 'German'}}")
    if taken := sorted(set(value) & set(STRATA)):
        raise InputError(f"strata.{taken[0]}: reports show this for every question already; expected another name")
    return {_check_name(name, "a name in strata"): _check_name(text, f"strata.{name}") for name, text in value.items()}
