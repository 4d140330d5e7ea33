"""The texts that a drafter learns from, gathered once per target and questions, and kept for other methods.

They lie in `cache_dir`, outside the work tree. Every batch is written as soon as it is complete, so what was stopped goes on.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specbench.errors import InputError
from specbench.models.target import Target
from specbench.models.texts import Text, generate_answers, read_texts, write_texts
from specbench.records.files import write_atomic
from specbench.records.names import make_file_name
from specbench.setup.questions import open_suite, select_questions
from specbench.setup.settings import TrainSettings
from specbench.training.own_questions import OwnQuestions
from specbench.watch import Watch
from tasks.question import Question

TEXTS = "texts.jsonl"
SELF = "self"  # data=self: the target writes its own questions
DECIDES = ("data", "questions", "max_new_tokens", "seed")  # settings that decide what is asked and answered
DECIDES_SUITE = ("suite", "task", "limit")  # the same, where the questions come from a suite
DECIDES_TARGET = ("path", "revision", "format", "template", "system", "dtype", "weights", "config")


@dataclass(frozen=True)
class Batches:
    """Batches kept in a folder, one file each."""

    folder: Path

    def keep(self, number: int, make: Callable[[], list[Any]]) -> list[Any]:
        """Return batch `number`, made now if it has not been made yet."""
        file = self.folder / f"{number:06}.json"
        if not file.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomic(file, json.dumps(make()))
        rows: list[Any] = json.loads(file.read_text(encoding="utf-8"))
        return rows


def find_texts(settings: TrainSettings) -> Path:
    """Return the file of the texts that the target writes under these settings."""
    plain = settings.recorded
    decisive = {name: plain[name] for name in (*DECIDES, *(() if settings.data == SELF else DECIDES_SUITE))}
    decisive |= {"target": {name: plain["target"].get(name) for name in DECIDES_TARGET}}
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:12]
    name = make_file_name(f"{settings.target.name}-{digest}")
    return Path(settings.cache_dir).expanduser() / "texts" / name / TEXTS


def gather_texts(settings: TrainSettings, target: Target, watch: Watch) -> list[Text]:
    """Return the texts of `data`, else the target's own answers."""
    if settings.data not in (None, SELF):
        return read_texts(Path(settings.data).expanduser(), target)
    check_held_out(settings.held_out, count_turns(settings))
    path = find_texts(settings)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        questions = _gather_questions(settings, target, path.parent, watch)
        answers = Batches(path.parent / "answers")
        write_texts(path, generate_answers(target, questions, settings.max_new_tokens, watch, keep=answers.keep))
        shutil.rmtree(answers.folder)
    return read_texts(path, target)


def count_turns(settings: TrainSettings) -> int:
    """Return how many answers the target is to write."""
    if settings.data == SELF:
        return settings.questions.count
    return sum(len(question.turns) for question in select_questions(settings, open_suite(settings), settings.limit))


def _gather_questions(settings: TrainSettings, target: Target, folder: Path, watch: Watch) -> list[Question]:
    if settings.data != SELF:
        return select_questions(settings, open_suite(settings), settings.limit)
    batches = Batches(folder / "questions")
    return OwnQuestions(target, settings.questions, settings.seed, batches.keep).write(watch)


def check_held_out(held_out: int, answers: int) -> None:
    """Raise InputError if no answer would be left to train on."""
    if held_out >= answers:
        raise InputError(f"held_out={held_out}: expected fewer than the {answers} answers, so that some are left to train on")
