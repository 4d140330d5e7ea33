"""Answers as token ids, one JSON object per turn, as vLLM and SGLang log them: read for replay.

Fields: `prompt_ids` and `output_ids` (or `answer_ids`), the token that ended the answer included. Optional: `question_id`
(default: the line number), `turn` (0), `task`, `category`, `finish_reason` (`eos` or `stop`, `length`; or SGLang's object),
`stop_id` (where output_ids lacks that token) and `max_new_tokens` (default: the config's). Drafts are cut there, or at the
answer's own length if it ended for another reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from specbench.errors import InputError
from specbench.records.files import JsonLines
from specbench.records.trial import BASELINE, IMPORTED, LIMITS, QuestionId, Trial, hash_ids
from specbench.records.typed import Label, check
from tasks.question import TASK_OF_CATEGORY

LARGEST = 2**20  # a vocabulary larger than any tokenizer's
OUTPUTS = ("output_ids", "answer_ids")
STOPPED = ("eos", "stop")  # vLLM, SGLang and OpenAI's interface say stop, also for a stop string


@dataclass(frozen=True)
class RecordedAnswer:
    """Ids of a prompt and its output. limit: of new tokens, where drafts are cut; stops: the id that ended it, if one did.

    ended: a stop string did.
    """

    prompt: list[int]
    output: list[int]
    limit: int
    stops: tuple[int, ...] = ()
    ended: bool = False


Turn = tuple[Trial, RecordedAnswer]
Row = TypeVar("Row")


def read_ids(path: Path, max_new_tokens: int) -> list[Turn]:
    """Read one turn per line, in the module's format. Raises InputError (file:line)."""

    def parse(row: Mapping[str, Any], number: int) -> list[Turn]:
        return [_parse_turn(row, number, path.stem, max_new_tokens)]

    return read_turns(path, JsonLines(path).read_numbered(torn=False), parse)


def _parse_turn(row: Mapping[str, Any], number: int, name: str, max_new_tokens: int) -> Turn:
    output_field = next((field for field in OUTPUTS if field in row), OUTPUTS[0])
    prompt, output = _parse_ids(row, "prompt_ids"), _parse_ids(row, output_field)
    if "stop_id" in row and output[-1] != row["stop_id"]:
        output = [*output, *_parse_ids({"stop_id": [row["stop_id"]]}, "stop_id")]
    limit = row.get("max_new_tokens", max(max_new_tokens, len(output)))
    if type(limit) is not int or limit < len(output):
        raise InputError(f"max_new_tokens={limit}: expected a whole number, at least the {len(output)} ids of {output_field}")
    category = _parse_name(row, "category", row.get("task", name))
    task = _parse_name(row, "task", TASK_OF_CATEGORY.get(category, category))
    answer = build_answer(prompt, output, limit, _was_stopped(row, len(output) < limit))
    question = _parse_question_id(row.get("question_id", number))
    return build_trial(name, task, category, question, _parse_turn_number(row), answer), answer


def _parse_ids(row: Mapping[str, Any], field: str) -> list[int]:
    if field not in row:
        raise InputError(f"no {field}; expected prompt_ids and output_ids, or choices in an answer file of Spec-Bench")
    ids = row[field]
    if not isinstance(ids, list) or not ids:
        raise InputError(f"{field}: expected a list of token ids, at least one")
    wrong = [id_ for id_ in ids if type(id_) is not int or not 0 <= id_ < LARGEST]
    if wrong:
        raise InputError(f"{field}: {wrong[0]!r} is not a token id")
    return ids


def _parse_name(row: Mapping[str, Any], field: str, default: Any) -> str:
    name = row.get(field, default)
    check(name, Label, field)
    return str(name)


def _was_stopped(row: Mapping[str, Any], short: bool) -> bool:
    """Return whether a token ended the answer. short: it is shorter than its limit."""
    reason = row.get("finish_reason")
    reason = reason.get("type") if isinstance(reason, dict) else reason
    check(reason, str | None, "finish_reason")
    return short if reason is None else reason in STOPPED


def _parse_question_id(value: Any) -> QuestionId:
    check(value, LIMITS["question_id"], "question_id")
    question: QuestionId = value
    return question


def _parse_turn_number(row: Mapping[str, Any]) -> int:
    turn = row.get("turn", 0)
    check(turn, int, "turn")
    return int(turn)


def build_answer(prompt: list[int], output: list[int], limit: int, stopped: bool) -> RecordedAnswer:
    """If the last token also occurs earlier it was not the stop token: a stop string or the client ended the answer."""
    if stopped and output[-1] not in output[:-1]:
        return RecordedAnswer(prompt, output, limit, (output[-1],))
    return RecordedAnswer(prompt, output, len(output))


def read_turns(path: Path, rows: Iterable[tuple[int, Row]], parse: Callable[[Row, int], Iterable[Turn]]) -> list[Turn]:
    """Parse all rows. Raises InputError (file:line), also for a duplicate turn."""
    turns: dict[tuple[QuestionId, int], Turn] = {}
    for number, row in rows:
        try:
            for trial, answer in parse(row, number):
                if (trial.question_id, trial.turn) in turns:
                    raise InputError(f"turn {trial.turn} of question {trial.question_id} already exists")
                turns[trial.question_id, trial.turn] = trial, answer
        except InputError as error:
            raise InputError(f"{path}:{number}: {error}") from None
    if not turns:
        raise InputError(f"{path}: holds no answer")
    return list(turns.values())


def build_trial(name: str, task: str, category: str, question: QuestionId, turn: int, answer: RecordedAnswer) -> Trial:
    """Build the record of a turn of which only ids are known."""
    return Trial(
        **IMPORTED,
        run_id=name,
        suite=name,
        task=task,
        category=category,
        question_id=question,
        turn=turn,
        method=BASELINE,
        new_tokens=len(answer.output),
        finish_reason="eos" if answer.stops else "length",
        output_sha256=hash_ids(answer.output),
        repeat=0,
        prompt_tokens=len(answer.prompt),
        prompt_sha256=hash_ids(answer.prompt),
        output_ids=answer.output,
    )
