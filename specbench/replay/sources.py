"""Answers to replay: from a run directory, from ids that an engine logged, or from Spec-Bench's answer files.

Ids are exact. Each line is a JSON object for one turn: `prompt_ids` and `output_ids` (or `answer_ids`), the token that ended the
answer included, as vLLM and SGLang log them. Optional: `question_id` (default: the line number), `turn` (0), `task`, `category`,
`finish_reason` (`eos` or `stop`, `length`; or SGLang's object), `stop_id` (where output_ids lacks that token) and
`max_new_tokens` (default: the config's). Drafts are cut there, or at the answer's own length if it ended for another reason.

Answer files hold texts. The suite's questions are rendered for the config's target, each turn after the file's own answers, and
the texts are encoded by its tokenizer, which need not give the ids that the engine wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from specbench.analysis.loaded_run import read_run
from specbench.errors import InputError, suggest_choices
from specbench.exchange import spec_bench as answers
from specbench.models.chat import render_prompt
from specbench.records.files import JsonLines
from specbench.records.run_directory import RunDirectory
from specbench.records.trial import BASELINE, IMPORTED, LIMITS, Prompt, QuestionId, Trial, hash_ids
from specbench.records.typed import Label, check
from specbench.replay.recorded_target import LARGEST, RecordedAnswer
from specbench.setup.objects import load_target_tokenizer
from specbench.setup.questions import open_suite
from specbench.setup.settings import RunSettings
from tasks.question import TASK_OF_CATEGORY, Question

Turn = tuple[Trial, RecordedAnswer]
OUTPUTS = ("output_ids", "answer_ids")
STOPPED = ("eos", "stop")  # vLLM, SGLang and OpenAI's interface say stop, also for a stop string


@dataclass(frozen=True)
class Recordings:
    """Turns in order, config and provenance of their run. live: all trials of a recorded run."""

    name: str
    turns: list[Turn]
    config: dict[str, Any]
    provenance: dict[str, Any]
    live: tuple[Trial, ...] = ()
    tokenizer: PreTrainedTokenizerBase | None = None  # that made the ids, where known
    note: str | None = None  # how far they can be trusted


def read_recordings(path: Path, settings: RunSettings) -> Recordings:
    """Read a run folder, an ids file or an answer file. Raises InputError (file:line)."""
    if path.is_dir():
        return read_run_answers(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    _, first = next(JsonLines(path).read_numbered(torn=False), (0, {}))
    return read_answer_file(path, settings) if "choices" in first else read_ids(path, settings.sampling.max_new_tokens)


def read_run_answers(path: Path) -> Recordings:
    """Read autoregressive decoding's answers in a run directory."""
    run = read_run(path)
    limit = (run.config.get("sampling") or {}).get("max_new_tokens")
    if not isinstance(limit, int):
        raise InputError(f"{path}: its config does not say sampling.max_new_tokens")
    turns = collect_turns((trial for trial in run.trials if trial.repeat == 0), RunDirectory(path).read_prompts(), limit)
    return Recordings(run.name, turns, run.config, run.provenance, tuple(run.trials))


def collect_turns(trials: Iterable[Trial], prompts: Iterable[Prompt], max_new_tokens: int) -> list[Turn]:
    """Return the records and answers of autoregressive decoding. Raises InputError if there is none."""
    ids = {prompt.sha256: prompt.prompt_ids for prompt in prompts}
    turns = []
    for trial in trials:
        if trial.method == BASELINE and not trial.failed and trial.output_ids and trial.prompt_sha256 in ids:
            limit = len(trial.output_ids) if trial.finish_reason == "capacity" else max_new_tokens
            stops = tuple(trial.output_ids[-1:]) if trial.finish_reason == "eos" else ()
            turns.append((trial, RecordedAnswer(ids[trial.prompt_sha256], trial.output_ids, limit, stops)))
    if not turns:
        raise InputError(f"no answer of {BASELINE} with its prompt and output ids to replay")
    return turns


def read_ids(path: Path, max_new_tokens: int) -> Recordings:
    """Read one turn per line, in the module's format."""

    def parse(row: Mapping[str, Any], number: int) -> list[Turn]:
        return [_parse_turn(row, number, path.stem, max_new_tokens)]

    turns = _read_turns(path, JsonLines(path).read_numbered(torn=False), parse)
    config = {"target": {"name": path.stem}, "suite": {"name": path.stem}, "sampling": {"max_new_tokens": max_new_tokens}}
    return Recordings(path.stem, turns, config, {"recorded": "ids"})


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
    answer = _build_answer(prompt, output, limit, _was_stopped(row, len(output) < limit))
    question = _parse_question_id(row.get("question_id", number))
    return _build_trial(name, task, category, question, _parse_turn_number(row), answer), answer


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


def _build_answer(prompt: list[int], output: list[int], limit: int, stopped: bool) -> RecordedAnswer:
    """If the last token also occurs earlier it was not the stop token: a stop string or the client ended the answer."""
    if stopped and output[-1] not in output[:-1]:
        return RecordedAnswer(prompt, output, limit, (output[-1],))
    return RecordedAnswer(prompt, output, len(output))


def read_answer_file(path: Path, settings: RunSettings) -> Recordings:
    """Read texts in Spec-Bench's format, encoded for the config's target."""
    suite = open_suite(settings)
    tokenizer, chat = load_target_tokenizer(settings.target)
    questions = {question.id: question for question in suite.questions()}
    reader = AnswerReader(suite.name, questions, tokenizer, chat, settings.sampling.max_new_tokens)
    turns = _read_turns(path, answers.read_answers(path), reader.read_turns)
    name = settings.target.name
    config = {"target": {"name": name}, "suite": {"name": suite.name}, "sampling": {"max_new_tokens": reader.limit}}
    counts = reader.describe_counts(turns)
    note = f"texts, encoded by the tokenizer of {name}: not always the ids that were written; {counts}"
    return Recordings(path.stem, turns, config, {"recorded": note}, tokenizer=tokenizer, note=note)


class AnswerReader:
    """Turns rows of an answer file into prompts and answers of a target."""

    def __init__(
        self, suite: str, questions: Mapping[str, Question], tokenizer: PreTrainedTokenizerBase, chat: str, limit: int
    ) -> None:
        self.suite, self.questions = suite, questions
        self.tokenizer, self.chat, self.limit = tokenizer, chat, limit
        self.counts: list[int] = []  # new tokens, as the file counts them

    def read_turns(self, row: Mapping[str, Any], number: int) -> Iterator[Turn]:
        question, choice = self._find_question(row), row["choices"][0]
        earlier: list[tuple[str, str | None]] = []
        for turn, (text, count) in enumerate(zip(choice["turns"], choice["new_tokens"], strict=True)):
            prompt = render_prompt(self.chat, [*earlier, (question.turns[turn], None)], self.tokenizer)
            earlier.append((question.turns[turn], text))
            output = self._encode_output(text, ended=count < self.limit)
            if text != answers.FAILED and output:
                self.counts.append(count)
                answer = _build_answer(prompt, output, max(self.limit, len(output)), count < self.limit)
                yield _build_trial(self.suite, question.task, question.category, question.id, turn, answer), answer

    def _find_question(self, row: Mapping[str, Any]) -> Question:
        name = str(row["question_id"])
        if name not in self.questions:
            raise InputError(
                f"question {name} is not in suite {self.suite}, which has {suggest_choices(name, list(self.questions))}"
            )
        question = self.questions[name]
        if len(row["choices"][0]["turns"]) > len(question.turns):
            raise InputError(f"more answers than the {len(question.turns)} turns of question {name} in suite {self.suite}")
        return question

    def _encode_output(self, text: str, ended: bool) -> list[int]:
        end = self.tokenizer.eos_token_id
        return [*self.tokenizer(text, add_special_tokens=False).input_ids, *([end] if ended and end is not None else [])]

    def describe_counts(self, turns: list[Turn]) -> str:
        same = sum(len(answer.output) == count for (_, answer), count in zip(turns, self.counts, strict=True))
        return f"{same} of {len(turns)} turns have as many ids as the file counts"


def _read_turns(
    path: Path, rows: Iterable[tuple[int, dict[str, Any]]], parse: Callable[[dict[str, Any], int], Iterable[Turn]]
) -> list[Turn]:
    """Parse all rows. Raises InputError (file:line), also for a turn that comes twice."""
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


def _build_trial(name: str, task: str, category: str, question: QuestionId, turn: int, answer: RecordedAnswer) -> Trial:
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
