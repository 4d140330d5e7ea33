"""Answer files in FastChat's form, as Spec-Bench, REST, Medusa and EAGLE write them: what each line contains, and what it omits.

One line per question: question_id, choices [{turns (texts), new_tokens and wall_time (s) by turn, …}]. Steps by turn are
`decoding_steps` in Spec-Bench, elsewhere `idxs`: the number of a turn's last step, from 0. Accepted lengths are Spec-Bench's
`accept_lengths` and REST's `accept_lengths:`, with a colon; Medusa and EAGLE write none, and no category. EAGLE's autoregressive
decoding counts no tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from specbench.errors import InputError
from specbench.exchange.answer_rules import FAILED, LENGTHS, Answer, find_contradiction
from specbench.records.files import JsonLines
from specbench.records.typed import Label, check

STEPS = ("decoding_steps", "idxs")
LENGTH_KEYS = (LENGTHS, f"{LENGTHS}:")
FIELDS = ("question_id", "choices")
BY_TURN: dict[str, type | tuple[type, ...]] = {"turns": str, "new_tokens": int, "wall_time": (int, float)}


def read_answers(path: Path) -> Iterator[tuple[int, Answer]]:
    """Yield line numbers and answers of a file. Raises InputError with the line, and for a file without an answer."""
    if not path.exists():
        raise InputError(f"{path}: no such file")
    number = 0
    for number, row in JsonLines(path).read_numbered(torn=False):
        try:
            yield number, parse_answer(row)
        except InputError as error:
            raise InputError(f"{path}:{number}: not an answer: {error}") from None
    if not number:
        raise InputError(f"{path}: holds no answer")


def parse_answer(row: Mapping[str, Any]) -> Answer:
    """Raise InputError for a row that lacks a field, or whose counts contradict each other."""
    choice = _get_choice(row)
    steps_key = next((name for name in STEPS if name in choice), None)
    _check_fields(row, choice, steps_key)
    assert steps_key is not None
    lengths = next((choice[name] for name in LENGTH_KEYS if name in choice), None)
    answer = Answer(
        question_id=row["question_id"],
        category=row.get("category"),
        texts=choice["turns"],
        new_tokens=choice["new_tokens"],
        seconds=choice["wall_time"],
        steps=_count_steps(choice[steps_key], steps_key, lengths),
        lengths=lengths,
        steps_key=steps_key,
    )
    if error := find_contradiction(answer):
        raise InputError(error)
    return answer


def _get_choice(row: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = row.get("choices")
    if isinstance(choices, list) and len(choices) > 1:
        raise InputError(f"it has {len(choices)} choices, expected one")
    return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}


def _count_steps(numbers: list[int], key: str, lengths: list[int] | None) -> list[int]:
    """Return the steps of each turn: `idxs` counts from 0, unless there are as many accepted lengths as it says."""
    from_zero = key == "idxs" and (lengths is None or sum(numbers) != len(lengths))
    return [number + 1 for number in numbers] if from_zero else numbers


def _check_fields(row: Mapping[str, Any], choice: Mapping[str, Any], steps_key: str | None) -> None:
    missing = [name for name in FIELDS if name not in row] + ([] if "turns" in choice else ["turns"])
    missing += [] if steps_key else [" or ".join(STEPS)]
    missing += [name for name in BY_TURN if name not in choice and name != "turns"]
    if missing:
        raise InputError(f"it has no {', '.join(missing)}")
    if type(row["question_id"]) not in (int, str):
        raise InputError("question_id is not an integer or a text")
    if "category" in row:
        check(row["category"], Label, "category")
    _check_turns(choice, {**BY_TURN, str(steps_key): int})
    counts = [name for name in ("new_tokens", str(steps_key), *LENGTH_KEYS) if name in choice]
    if wrong := next((name for name in counts if not _is_list_of(choice[name], int)), None):
        raise InputError(f"{wrong} is not a list of integers")
    if negative := next((name for name in counts if any(count < 0 for count in choice[name])), None):
        raise InputError(f"{negative} is below 0")


def _check_turns(choice: Mapping[str, Any], kinds: Mapping[str, type | tuple[type, ...]]) -> None:
    for name, kind in kinds.items():
        if not _is_list_of(choice[name], kind) or len(choice[name]) != len(choice["turns"]):
            raise InputError(f"{name} is not a list of {'texts' if kind is str else 'numbers'}, one per turn")
    if not choice["turns"]:
        raise InputError("turns is empty")
    pairs = zip(choice["wall_time"], choice["turns"], strict=True)
    if not all(0 < wall < math.inf or text == FAILED for wall, text in pairs):
        raise InputError(f"wall_time is not above 0 in a turn whose text is not {FAILED}")


def _is_list_of(values: object, kind: type | tuple[type, ...]) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) and not isinstance(value, bool) for value in values)
