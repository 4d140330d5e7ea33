"""Spec-Bench's answer files: export a run for its scripts, and import its files, and others of that form, as a run.

One line per question: question_id, category, answer_id, model_id, choices [{index, turns (texts), decoding_steps, new_tokens and
wall_time (s) by turn, accept_lengths (of all turns, one after the other)}], tstamp. Its speed.py pairs folders, one per repeat.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specbench.analysis.loaded_run import LoadedRun, find_first
from specbench.errors import InputError, suggest_choices
from specbench.exchange.answer_rules import FAILED, Answer, check_same_counts, describe_counts
from specbench.exchange.answers import read_answers
from specbench.models.chat import count_retokenised
from specbench.records.files import write_atomic
from specbench.records.names import make_file_name
from specbench.records.run_directory import RunDirectory
from specbench.records.stripped import check_texts
from specbench.records.trial import BASELINE, IMPORTED, QuestionId, Trial, TrialKey
from specbench.records.trial_rules import parse_trial
from tasks.question import TASK_OF_CATEGORY, Question

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

FOLDER = "model_answer_run_{}"
SUITE = "spec_bench"


@dataclass(frozen=True)
class AnswerFile:
    """The answers of a method in one repeat, each with the number of its line."""

    path: Path
    method: str
    repeat: int
    answers: list[tuple[int, Answer]]

    @property
    def notice(self) -> str | None:
        """How much its counts disagree."""
        said = describe_counts([answer for _, answer in self.answers])
        return f"{self.path}: {said}" if said else None


def export_answers(run: LoadedRun, out: Path) -> list[Path]:
    """Write one file per method and repeat, with the questions that every method completed in that repeat and none failed.

    Raises InputError if none of them has stored text.
    """
    check_texts(run.provenance, run.name)
    if (batch := find_first(run.config, "batch") or 1) > 1:
        raise InputError(f"{run.name} decoded {batch} questions at a time: in Spec-Bench's files every question has its own time")
    if (load := find_first(run.config, "concurrency") or 1) > 1:
        raise InputError(f"{run.name} sent {load} requests at a time: in Spec-Bench's files a question is timed alone")
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


def import_answers(
    files: Sequence[Path],
    baselines: Sequence[Path],
    tokenizer: Tokenizer | None,
    run: RunDirectory,
    questions: Sequence[Question] | None = None,
) -> list[str]:
    """Write answer files as a run. Methods are named after the files; the i-th file of a name is repeat i, as for the baseline.

    tokenizer: for Spec-Bench's count of the baseline's tokens. questions: those that were answered, with tasks and categories.
    Times are wall times of whole turns; texts are compared as texts. Returns notices about counts that disagree. Raises
    InputError for a file with other content, naming its line, and for a method with more or fewer files than the baseline.
    """
    read = _read_files([path for path in files if path not in baselines], baselines)
    places = _place_questions(read, questions, baselines[0].stem)
    placed = [_build_trials(file, places, tokenizer) for file in read]
    trials = [[trial for _, trial in rows] for rows in placed]
    _check_same_questions([file.path for file in read], trials)
    check_same_counts(chain(*trials[: len(baselines)]), chain(*placed))
    suite = next(iter(places.values())).suite
    run.write_config({"target": {"name": baselines[0].stem}, "suite": {"name": suite}, "sampling": {}, "method": {}})
    run.write_provenance({"imported": [f"{file.path.parent.name}/{file.path.name}" for file in read]})
    for trial in chain(*trials):
        run.append_trials(trial)
    return [file.notice for file in read if file.notice]


def _read_files(files: Sequence[Path], baselines: Sequence[Path]) -> list[AnswerFile]:
    """Return the baseline's files, then the others."""
    labelled = [*((BASELINE, path) for path in baselines), *((path.stem, path) for path in files)]
    labels = [label for label, _ in labelled]
    for method, count in Counter(labels).items():
        if count != len(baselines):
            raise InputError(f"--baseline: {len(baselines)} files, {method} has {count}")
    return [
        AnswerFile(path, label, labels[:index].count(label), list(read_answers(path)))
        for index, (label, path) in enumerate(labelled)
    ]


@dataclass(frozen=True)
class _Place:
    """Where a question belongs."""

    suite: str
    task: str
    category: str


def _place_questions(files: Sequence[AnswerFile], questions: Sequence[Question] | None, name: str) -> dict[str, _Place]:
    """Return the place of each answered question: from the questions, else from a file that gives it, else `name` for all."""
    if questions is not None:
        known = {question.id: _Place(name, question.task, question.category) for question in questions}
        _check_known(files, known)
        return known
    answers = [answer for file in files for _, answer in file.answers]
    suite = SUITE if all(answer.steps_key == "decoding_steps" for answer in answers) else name
    said = {str(answer.question_id): answer.category for answer in answers if answer.category is not None}
    categories = {str(answer.question_id): said.get(str(answer.question_id), name) for answer in answers}
    return {question: _Place(suite, TASK_OF_CATEGORY.get(one, one), one) for question, one in categories.items()}


def _check_known(files: Sequence[AnswerFile], known: Mapping[str, _Place]) -> None:
    for file in files:
        for number, answer in file.answers:
            if str(answer.question_id) not in known:
                choices = suggest_choices(str(answer.question_id), list(known))
                raise InputError(
                    f"{file.path}:{number}: question {answer.question_id} is not in --questions, which has {choices}"
                )


def _build_trials(file: AnswerFile, places: Mapping[str, _Place], tokenizer: Tokenizer | None) -> list[tuple[str, Trial]]:
    """Return one file's turns, each with its file:line. Raises InputError (file:line), also for a duplicate question."""
    trials: dict[TrialKey, tuple[str, Trial]] = {}
    for number, answer in file.answers:
        try:
            if answer.uncounted and file.method != BASELINE:
                raise InputError("new_tokens is 0 in all turns; only the baseline's tokens can be counted by its steps")
            for turn, committed in enumerate(answer.split_lengths()):
                trial = _build_trial(file, answer, places[str(answer.question_id)], turn, committed, tokenizer)
                if trial.key in trials:
                    raise InputError(f"turn {turn} of question {trial.question_id} already exists")
                trials[trial.key] = f"{file.path}:{number}", parse_trial(trial.to_row())
        except InputError as error:
            raise InputError(f"{file.path}:{number}: not an answer: {error}") from None
    return list(trials.values())


def _check_same_questions(paths: Sequence[Path], files: Sequence[Sequence[Trial]]) -> None:
    """Raise InputError unless every file answers the turns that the first one does, in the same categories."""
    first, *others = ({(trial.question_id, trial.turn): trial.category for trial in file} for file in files)
    for path, turns in zip(paths[1:], others, strict=True):
        for question, turn in [*first, *turns]:
            here, there = turns.get((question, turn), "missing"), first.get((question, turn), "missing")
            if here != there:
                raise InputError(f"{path}: turn {turn + 1} of question {question} is {here}, in {paths[0]} it is {there}")


def _build_trial(
    file: AnswerFile, answer: Answer, place: _Place, turn: int, committed: list[int] | None, tokenizer: Tokenizer | None
) -> Trial:
    text, steps = answer.texts[turn], answer.steps[turn]
    return Trial(
        **IMPORTED,
        run_id=file.method,
        suite=place.suite,
        task=place.task,
        category=place.category,
        question_id=answer.question_id,
        turn=turn,
        method=file.method,
        new_tokens=steps if answer.uncounted else answer.new_tokens[turn],
        finish_reason="error" if text == FAILED else "length",
        output_sha256=hashlib.sha256(text.encode()).hexdigest(),
        repeat=file.repeat,
        prompt_tokens=0,
        prompt_sha256="",
        steps=steps if committed is None else len(committed),
        accepted=None if committed is None else [max(0, count - 1) for count in committed],
        committed=committed,
        decode_s=answer.seconds[turn],
        retokenised=count_retokenised(tokenizer, text) if tokenizer and file.method == BASELINE else None,
    )
