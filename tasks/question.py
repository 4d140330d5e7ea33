"""Questions in Spec-Bench's JSONL schema (question_id, category, turns, reference): reading and subsampling.

A mistake in a file raises an InputError of one line that begins with file:line.
"""

from __future__ import annotations

import glob
import json
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from specbench.errors import InputError, suggest_choices

MT_BENCH = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
SINGLE_TURN = ("translation", "summarization", "qa", "math_reasoning", "rag")
TASK_OF_CATEGORY = dict.fromkeys(MT_BENCH, "mt_bench") | {category: category for category in SINGLE_TURN}


@dataclass(frozen=True)
class Question:
    """One conversation: the user's turns. `reference` is text, or JSON text where the source has a list."""

    id: str
    task: str
    category: str
    turns: tuple[str, ...]
    reference: str | None = None


def read_questions(path: str | Path) -> list[Question]:
    """Return a JSONL file's questions in order; blank lines are skipped. Raises InputError (file:line)."""
    questions: list[Question] = []
    line_of_id: dict[str, int] = {}
    for number, line in enumerate(_read_lines(Path(path)), start=1):
        if not line.strip():
            continue
        try:
            question = _parse_question(_parse_row(line))
            if question.id in line_of_id:
                raise InputError(f"question_id {question.id!r} is already used on line {line_of_id[question.id]}")
        except InputError as error:
            raise InputError(f"{path}:{number}: {error}") from None
        line_of_id[question.id] = number
        questions.append(question)
    if not questions:
        raise InputError(f"{path}: no questions in this file")
    return questions


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


def _read_lines(path: Path) -> Iterator[str]:
    """Yield lines without their ends; datasets' JSON reader could not name a broken line."""
    from datasets import load_dataset  # takes seconds to import

    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        rows = load_dataset("text", data_files=glob.escape(str(path)), split="train", streaming=True)
        yield from (row["text"] for row in rows)
    except UnicodeDecodeError:
        raise InputError(f"{path}:{_find_undecodable_line(path.read_bytes())}: not UTF-8") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None


def _find_undecodable_line(data: bytes) -> int:
    """Return the number of the first line that is not UTF-8; 0 if all are."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return data.count(b"\n", 0, error.start) + 1
    return 0


def _parse_row(line: str) -> dict[str, object]:
    """Parse a line as a JSON object whose texts can all be encoded (a lone surrogate cannot)."""
    try:
        row = json.loads(line)
        json.dumps(row, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise InputError(f"not valid JSON: {error.msg} at column {error.colno}") from None
    except UnicodeEncodeError:
        raise InputError("a text holds half of a surrogate pair, which is not valid Unicode") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"not valid JSON: {error}") from None
    if not isinstance(row, dict):
        raise InputError(f"expected a JSON object, got {type(row).__name__}")
    return row


def _parse_question(row: dict[str, object]) -> Question:
    for field in ("question_id", "category", "turns"):
        if field not in row:
            raise InputError(f"field {field!r} is missing; expected question_id, category and turns")
    category, task = _parse_category(row)
    turns, reference = _parse_turns(row["turns"]), _parse_reference(row.get("reference"))
    return Question(_parse_id(row["question_id"]), task, category, turns, reference)


def _parse_id(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, str)) or not str(value).strip():
        raise InputError(f"question_id is {value!r}, expected a whole number or a non-empty string")
    return str(value)


def _parse_category(row: dict[str, object]) -> tuple[str, str]:
    """Return category and task. A row's own `task` wins and allows any category; otherwise Spec-Bench's category decides."""
    category, task = row["category"], row.get("task")
    if not isinstance(category, str) or not category.strip():
        raise InputError(f"category is {category!r}, expected a non-empty string")
    if task is None:
        if category not in TASK_OF_CATEGORY:
            known = suggest_choices(category, list(TASK_OF_CATEGORY))
            raise InputError(f"unknown category {category!r}, expected {known}; or name the row's own task in 'task'")
        return category, TASK_OF_CATEGORY[category]
    if not isinstance(task, str) or not task.strip():
        raise InputError(f"task is {task!r}, expected a non-empty string")
    return category, task


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
