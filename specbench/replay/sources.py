"""Answers to replay: from a run directory, from ids that an engine logged (exchange/ids.py), or from answer files.

Answer files hold texts. The suite's questions are rendered for the config's target, each turn after the file's own answers, and
the texts are encoded by its tokenizer, which need not give the ids that the engine generated.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from specbench.analysis.loaded_run import read_run
from specbench.errors import InputError, suggest_choices
from specbench.exchange.answer_rules import FAILED, Answer, describe_counts
from specbench.exchange.answers import read_answers
from specbench.exchange.ids import RecordedAnswer, Turn, build_answer, build_trial, read_ids, read_turns
from specbench.models.chat import Chat, render_prompt
from specbench.records.files import JsonLines
from specbench.records.run_directory import RunDirectory
from specbench.records.stripped import check_texts
from specbench.records.trial import BASELINE, Prompt, Trial
from specbench.setup.objects import load_target_tokenizer
from specbench.setup.questions import open_suite
from specbench.setup.settings import RunSettings
from tasks.question import Question


@dataclass(frozen=True)
class Recordings:
    """Turns in order, config and provenance of their run. live: all trials of a recorded run."""

    name: str
    turns: list[Turn]
    config: dict[str, Any]
    provenance: dict[str, Any]
    live: tuple[Trial, ...] = ()
    tokenizer: PreTrainedTokenizerBase | None = None  # that made the ids, where known
    notes: tuple[str, ...] = ()  # how far they can be trusted


def read_recordings(path: Path, settings: RunSettings) -> Recordings:
    """Read a run folder, an ids file or an answer file. Raises InputError (file:line)."""
    if path.is_dir():
        return read_run_answers(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    _, first = next(JsonLines(path).read_numbered(torn=False), (0, {}))
    return read_answer_file(path, settings) if "choices" in first else read_id_file(path, settings.sampling.max_new_tokens)


def read_run_answers(path: Path) -> Recordings:
    """Read autoregressive decoding's answers in a run directory."""
    run = read_run(path)
    check_texts(run.provenance, f"--of {path}")
    limit = (run.config.get("sampling") or {}).get("max_new_tokens")
    if not isinstance(limit, int):
        raise InputError(f"{path}: its config has no sampling.max_new_tokens")
    turns = collect_turns((trial for trial in run.trials if trial.repeat == 0), RunDirectory(path).read_prompts(), limit)
    return Recordings(run.name, turns, run.config, run.provenance, tuple(run.trials))


def collect_turns(trials: Iterable[Trial], prompts: Iterable[Prompt], max_new_tokens: int) -> list[Turn]:
    """Return the records and answers of autoregressive decoding. Raises InputError if there is none."""
    ids = {prompt.sha256: prompt.prompt_ids for prompt in prompts if prompt.prompt_ids is not None}
    turns = []
    for trial in trials:
        if trial.method == BASELINE and not trial.failed and trial.output_ids and trial.prompt_sha256 in ids:
            turns.append((trial, build_recorded(trial, ids[trial.prompt_sha256], trial.output_ids, max_new_tokens)))
    if not turns:
        raise InputError(f"nothing to replay: no answer of {BASELINE} has its prompt and output ids")
    return turns


def build_recorded(trial: Trial, prompt: list[int], output: list[int], max_new_tokens: int) -> RecordedAnswer:
    """Return the answer of a recorded turn, to be replayed. prompt, output: its ids."""
    limit = len(output) if trial.finish_reason == "capacity" else max_new_tokens
    stops = tuple(output[-1:]) if trial.finish_reason == "eos" else ()
    return RecordedAnswer(prompt, output, limit, stops, trial.finish_reason == "stop_string")


def read_id_file(path: Path, max_new_tokens: int) -> Recordings:
    """Read token ids that an engine logged."""
    config = {"target": {"name": path.stem}, "suite": {"name": path.stem}, "sampling": {"max_new_tokens": max_new_tokens}}
    return Recordings(path.stem, read_ids(path, max_new_tokens), config, {"recorded": "ids"})


def read_answer_file(path: Path, settings: RunSettings) -> Recordings:
    """Read texts in the form of exchange/answers.py, encoded for the config's target."""
    suite = open_suite(settings)
    tokenizer, chat = load_target_tokenizer(settings.target)
    questions = {question.id: question for question in suite.questions()}
    reader = AnswerReader(suite.name, questions, tokenizer, chat, settings.sampling.max_new_tokens)
    read = list(read_answers(path))
    turns = read_turns(path, read, reader.read_turns)
    name = settings.target.name
    config = {"target": {"name": name}, "suite": {"name": suite.name}, "sampling": {"max_new_tokens": reader.limit}}
    note = f"texts, encoded by the tokenizer of {name}, may not give the ids that were generated: {reader.describe_ids()}"
    missed = describe_counts([answer for _, answer in read])
    notes = (note, *([f"{path}: {missed}"] if missed else []))
    return Recordings(path.stem, turns, config, {"recorded": note}, tokenizer=tokenizer, notes=notes)


class AnswerReader:
    """Turns rows of an answer file into prompts and answers of a target."""

    def __init__(
        self, suite: str, questions: Mapping[str, Question], tokenizer: PreTrainedTokenizerBase, chat: Chat, limit: int
    ) -> None:
        self.suite, self.questions = suite, questions
        self.tokenizer, self.chat, self.limit = tokenizer, chat, limit
        self.gaps: list[int] = []  # ids less new tokens, as the file counts them

    def read_turns(self, answer: Answer, number: int) -> Iterator[Turn]:
        question = self._find_question(answer)
        earlier: list[tuple[str, str | None]] = []
        counts = answer.steps if answer.uncounted else answer.new_tokens
        for turn, (text, count) in enumerate(zip(answer.texts, counts, strict=True)):
            prompt = render_prompt(self.chat, [*earlier, (question.turns[turn], None)], self.tokenizer)
            earlier.append((question.turns[turn], text))
            output = self._encode_output(text, ended=count < self.limit)
            if text != FAILED and output:
                self.gaps.append(len(output) - count)
                recorded = build_answer(prompt, output, max(self.limit, len(output)), count < self.limit)
                yield build_trial(self.suite, question.task, question.category, question.id, turn, recorded), recorded

    def _find_question(self, answer: Answer) -> Question:
        name = str(answer.question_id)
        if name not in self.questions:
            raise InputError(
                f"question {name} is not in suite {self.suite}, which has {suggest_choices(name, list(self.questions))}"
            )
        question = self.questions[name]
        if len(answer.texts) > len(question.turns):
            raise InputError(f"more answers than the {len(question.turns)} turns of question {name} in suite {self.suite}")
        return question

    def _encode_output(self, text: str, ended: bool) -> list[int]:
        end = self.tokenizer.eos_token_id
        return [*self.tokenizer(text, add_special_tokens=False).input_ids, *([end] if ended and end is not None else [])]

    def describe_ids(self) -> str:
        """Return how many turns have as many ids as the file counts, and how far the others are from it."""
        others = [gap for gap in self.gaps if gap]
        said = f"{len(self.gaps) - len(others)} of {len(self.gaps)} turns have as many ids as the file counts"
        return f"{said}, the others differ by {min(others):+d} to {max(others):+d}" if others else said
