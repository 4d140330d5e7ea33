"""Spec-Bench's answer files: export a run for its scripts, and import its files as a run.

One line per question: question_id, category, answer_id, model_id, choices [{index, turns (texts), decoding_steps, new_tokens and
wall_time (s) by turn, accept_lengths (of all turns, one after the other)}], tstamp. Its speed.py pairs folders, one per repeat.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specbench.analysis.loaded_run import LoadedRun
from specbench.errors import InputError
from specbench.exchange.answer_rules import FAILED, check_same_counts, find_contradiction
from specbench.models.chat import count_retokenised
from specbench.records.files import JsonLines, write_atomic
from specbench.records.names import make_file_name
from specbench.records.run_directory import RunDirectory
from specbench.records.stripped import check_texts
from specbench.records.trial import BASELINE, IMPORTED, QuestionId, Trial, TrialKey
from specbench.records.trial_rules import parse_trial
from tasks.question import TASK_OF_CATEGORY

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

FOLDER = "model_answer_run_{}"
FIELDS = ("question_id", "category", "choices")
CHOICE = ("turns", "decoding_steps", "new_tokens", "wall_time", "accept_lengths")
BY_TURN: dict[str, type | tuple[type, ...]] = {"turns": str, "decoding_steps": int, "new_tokens": int, "wall_time": (int, float)}
COUNTS = ("decoding_steps", "new_tokens", "accept_lengths")


def export_answers(run: LoadedRun, out: Path) -> list[Path]:
    """Write one file per method and repeat, with the questions that every method completed in that repeat and none failed.

    Raises InputError if none of them has stored text.
    """
    check_texts(run.provenance, run.name)
    texts = {(row["method"], row["question_id"], row["turn"]): row["text"] for row in run.texts}
    first = {(trial.method, trial.question_id, trial.turn): trial.output_sha256 for trial in run.trials if trial.repeat == 0}
    complete = _find_complete(run.trials)
    trials = [trial for trial in run.trials if (trial.repeat, trial.question_id) in complete]
    trials.sort(key=lambda trial: (trial.method, trial.repeat, str(trial.question_id), trial.turn))
    written = []
    for (method, repeat), group in groupby(trials, key=lambda trial: (trial.method, trial.repeat)):
        turns = [(trial, (method, trial.question_id, trial.turn)) for trial in group]
        if any(key not in texts or trial.output_sha256 != first.get(key) for trial, key in turns):
            continue  # the text of another seed, which is not stored
        questions = [list(rows) for _, rows in groupby(turns, key=lambda turn: turn[0].question_id)]
        rows = [_build_row(run, [trial for trial, _ in rows], [texts[key] for _, key in rows]) for rows in questions]
        path = out / FOLDER.format(repeat + 1) / f"{make_file_name(method)}.jsonl"
        write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        written.append(path)
    if not written:
        raise InputError(f"{run.name} holds no texts of questions that every method completed")
    return written


def _find_complete(trials: Sequence[Trial]) -> set[tuple[int, QuestionId]]:
    """Return (repeat, question) of which every method has every turn, without questions of which any turn failed."""
    failed = {trial.question_id for trial in trials if trial.failed}
    methods = {trial.method for trial in trials}
    turns = Counter(question for question, _ in {(trial.question_id, trial.turn) for trial in trials})
    counts = Counter((trial.repeat, trial.question_id) for trial in trials if trial.question_id not in failed)
    return {key for key, count in counts.items() if count == len(methods) * turns[key[1]]}


def _build_row(run: LoadedRun, turns: Sequence[Trial], texts: Sequence[str]) -> dict[str, Any]:
    choice = {
        "index": 0,
        "turns": list(texts),
        "decoding_steps": [trial.steps for trial in turns],
        "new_tokens": [trial.new_tokens for trial in turns],
        "wall_time": [(trial.prefill_s or 0.0) + (trial.decode_s or 0.0) for trial in turns],
        "accept_lengths": [count for trial in turns for count in trial.committed or []],
    }
    name = f"{run.name}/{turns[0].method}/{turns[0].repeat}/{turns[0].question_id}"
    return {
        "question_id": turns[0].question_id,
        "category": turns[0].category,
        "answer_id": hashlib.sha256(name.encode()).hexdigest()[:22],
        "model_id": turns[0].method,
        "choices": [choice],
        "tstamp": run.started,
    }


def import_answers(files: Sequence[Path], baselines: Sequence[Path], tokenizer: Tokenizer | None, run: RunDirectory) -> None:
    """Write answer files as a run. Methods are named after the files; the i-th file of a name is repeat i, as for the baseline.

    tokenizer: for Spec-Bench's count of the baseline's tokens. Times are wall times of whole turns; texts are compared as texts.
    Raises InputError for a file with other content, naming its line, and for a method with more or fewer files than the baseline.
    """
    labelled = [*((BASELINE, path) for path in baselines), *((path.stem, path) for path in files if path not in baselines)]
    labels = [label for label, _ in labelled]
    for method, count in Counter(labels).items():
        if count != len(baselines):
            raise InputError(f"--baseline: {len(baselines)} files, {method} has {count}")
    placed = [_read_trials(path, label, labels[:index].count(label), tokenizer) for index, (label, path) in enumerate(labelled)]
    read = [[trial for _, trial in trials] for trials in placed]
    _check_same_questions([path for _, path in labelled], read)
    check_same_counts(chain(*read[: len(baselines)]), chain(*placed))
    run.write_config({"target": {"name": baselines[0].stem}, "suite": {"name": "spec_bench"}, "sampling": {}, "method": {}})
    run.write_provenance({"imported": [f"{path.parent.name}/{path.name}" for _, path in labelled]})
    for trial in (trial for trials in read for trial in trials):
        run.append_trial(trial)


def _read_trials(path: Path, label: str, repeat: int, tokenizer: Tokenizer | None) -> list[tuple[str, Trial]]:
    """Return one file's turns, each with its file:line. Raises InputError (file:line), also for a question that comes twice."""
    trials: dict[TrialKey, tuple[str, Trial]] = {}
    for number, row in read_answers(path):
        for turn, committed in enumerate(_split_by_turn(row["choices"][0])):
            trial = _build_trial(label, repeat, row, turn, committed, tokenizer)
            try:
                if trial.key in trials:
                    raise InputError(f"turn {turn} of question {trial.question_id} already exists")
                trials[trial.key] = f"{path}:{number}", parse_trial(trial.to_row())
            except InputError as error:
                raise InputError(f"{path}:{number}: not an answer of Spec-Bench: {error}") from None
    return list(trials.values())


def _check_same_questions(paths: Sequence[Path], files: Sequence[Sequence[Trial]]) -> None:
    """Raise InputError unless every file answers the turns that the first one does, in the same categories."""
    first, *others = ({(trial.question_id, trial.turn): trial.category for trial in file} for file in files)
    for path, turns in zip(paths[1:], others, strict=True):
        for question, turn in [*first, *turns]:
            here, there = turns.get((question, turn), "missing"), first.get((question, turn), "missing")
            if here != there:
                raise InputError(f"{path}: turn {turn + 1} of question {question} is {here}, in {paths[0]} it is {there}")


def read_answers(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield line numbers and rows of an answer file. Raises InputError with the line, and for a file without an answer."""
    if not path.exists():
        raise InputError(f"{path}: no such file")
    number = 0
    for number, row in JsonLines(path).read_numbered(torn=False):
        if error := _find_error(row):
            raise InputError(f"{path}:{number}: not an answer of Spec-Bench: {error}")
        yield number, row
    if not number:
        raise InputError(f"{path}: holds no answer")


def _find_error(row: dict[str, Any]) -> str | None:
    """Return what is wrong with a row, or None."""
    choices: Any = row.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    missing = [*(name for name in FIELDS if name not in row), *(name for name in CHOICE if name not in choice)]
    if missing:
        return f"it has no {', '.join(missing)}"
    if len(choices) > 1:
        return f"it has {len(choices)} choices, expected one"
    if type(row["question_id"]) not in (int, str):
        return "question_id is not an integer or a text"
    if not isinstance(row["category"], str):
        return "category is not a text"
    for name, kind in BY_TURN.items():
        values = choice[name]
        if not _is_list_of(values, kind) or len(values) != len(choice["turns"]):
            return f"{name} is not a list of {'texts' if kind is str else 'numbers'}, one per turn"
    if not choice["turns"]:
        return "turns is empty"
    if not all(0 < wall < math.inf or text == FAILED for wall, text in zip(choice["wall_time"], choice["turns"], strict=True)):
        return f"wall_time is not above 0 in a turn whose text is not {FAILED}"
    if not _is_list_of(choice["accept_lengths"], int):
        return "accept_lengths is not a list of integers"
    negative = [name for name in COUNTS if any(count < 0 for count in choice[name])]
    return f"{negative[0]} is below 0" if negative else find_contradiction(choice)


def _is_list_of(values: object, kind: type | tuple[type, ...]) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) and not isinstance(value, bool) for value in values)


def _split_by_turn(choice: dict[str, Any]) -> list[list[int]]:
    """Return the accepted lengths of each turn; if the steps do not add up to them, all belong to the first turn."""
    lengths, steps = choice["accept_lengths"], choice["decoding_steps"]
    if sum(steps) != len(lengths):
        return [lengths if turn == 0 else [] for turn in range(len(steps))]
    ends = [sum(steps[: turn + 1]) for turn in range(len(steps))]
    return [lengths[end - count : end] for end, count in zip(ends, steps, strict=True)]


def _build_trial(
    label: str, repeat: int, row: dict[str, Any], turn: int, committed: list[int], tokenizer: Tokenizer | None
) -> Trial:
    choice, category = row["choices"][0], row["category"]
    text = choice["turns"][turn]
    return Trial(
        **IMPORTED,
        run_id=label,
        suite="spec_bench",
        task=TASK_OF_CATEGORY.get(category, category),
        category=category,
        question_id=row["question_id"],
        turn=turn,
        method=label,
        new_tokens=choice["new_tokens"][turn],
        finish_reason="error" if text == FAILED else "length",
        output_sha256=hashlib.sha256(text.encode()).hexdigest(),
        repeat=repeat,
        prompt_tokens=0,
        prompt_sha256="",
        steps=len(committed),
        accepted=[max(0, count - 1) for count in committed],
        committed=committed,
        decode_s=choice["wall_time"][turn],
        retokenised=count_retokenised(tokenizer, text) if tokenizer and label == BASELINE else None,
    )
