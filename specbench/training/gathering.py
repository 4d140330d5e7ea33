"""The texts that a drafter learns from, gathered once per target and questions, and kept for other methods.

They lie in `cache_dir`, outside the work tree. Every batch is written as soon as it is complete, so a stopped job resumes.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from specbench.decoding.sampling import Sampling
from specbench.errors import InputError
from specbench.models.chat import render_prompt
from specbench.models.target import Target
from specbench.models.texts import SIDE_BY_SIDE, Text, continue_prompts, generate_answers, read_texts, write_texts
from specbench.records.files import write_atomic
from specbench.records.names import make_file_name
from specbench.setup.fingerprints import hash_path
from specbench.setup.questions import open_suite, select_questions
from specbench.setup.settings import TrainSettings
from specbench.training.own_questions import OwnQuestions
from specbench.watch import Watch
from tasks.question import Question

TEXTS = "texts.jsonl"
TRIED = 4  # steps from which the minutes are estimated
EMBEDDED = "mini"  # the target that the embedded suite's questions are for
SELF = "self"  # data=self: the target writes its own questions
DECIDES = ("questions", "max_new_tokens", "seed")  # settings that determine the questions and answers
DECIDES_SUITE = ("suite", "task", "limit")  # the same, where the questions come from a suite
DECIDES_TARGET = ("path", "revision", "format", "template", "system", "dtype", "weights", "config")


@dataclass(frozen=True)
class KeptBatches:
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


def asks_itself(settings: TrainSettings) -> bool:
    """Return whether the target writes its own questions: with data=self, and if the command chooses a target without a suite."""
    chosen = "target" in settings.named and "suite" not in settings.named and settings.target.name != EMBEDDED
    return settings.data == SELF or (settings.data is None and chosen)


def find_texts(settings: TrainSettings) -> Path:
    """Return the file of the texts that the target writes under these settings."""
    plain = settings.recorded
    decisive = {name: plain[name] for name in (*DECIDES, *(() if asks_itself(settings) else DECIDES_SUITE))}
    decisive |= {"self": asks_itself(settings), "target": {name: plain["target"].get(name) for name in DECIDES_TARGET}}
    decisive["contents"] = _hash_files(str(settings.target.path), settings.target.revision, tuple(settings.questions.avoid))
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:12]
    name = make_file_name(f"{settings.target.name}-{digest}")
    return Path(settings.cache_dir).expanduser() / "texts" / name / TEXTS


@lru_cache(maxsize=1)
def _hash_files(target: str, revision: str | None, avoided: tuple[str, ...]) -> list[str | None]:
    """Return the fingerprints of a target and of files of test questions; None for what is not on this machine."""
    return [hash_path(target, revision), *map(hash_path, avoided)]


def holds_texts(settings: TrainSettings) -> bool:
    """Return whether some of these texts are kept."""
    return any(path.is_file() and path.suffix != ".part" for path in find_texts(settings).parent.rglob("*"))


def gather_texts(settings: TrainSettings, target: Target, watch: Watch) -> list[Text]:
    """Return the texts of `data`, else the target's own answers."""
    if settings.data not in (None, SELF):
        return read_texts(Path(settings.data).expanduser(), target)
    check_held_out(settings.held_out, count_turns(settings))
    if not (path := find_texts(settings)).is_file():
        watch(f"questions and answers: about {_estimate_minutes(settings, target):.0f} minutes at most", 0, count_turns(settings))
        questions = _gather_questions(settings, target, path.parent, watch)
        answers = KeptBatches(path.parent / "answers")
        write_texts(path, generate_answers(target, questions, settings.max_new_tokens, watch, keep=answers.keep))
        shutil.rmtree(answers.folder)
    return read_texts(path, target)


def _estimate_minutes(settings: TrainSettings, target: Target) -> float:
    """Return the minutes that the target writes if every question and answer is as long as allowed, from a few steps' time."""
    prompt = render_prompt(target.chat, [("Hello", None)], target.tokenizer)
    (out, *_) = continue_prompts(target, [prompt] * SIDE_BY_SIDE, Sampling(max_new_tokens=TRIED + 1))
    tokens = settings.max_new_tokens + (settings.questions.max_new_tokens if asks_itself(settings) else 0)
    return out.decode_s / TRIED * tokens * math.ceil(count_turns(settings) / SIDE_BY_SIDE) / 60


def count_turns(settings: TrainSettings) -> int:
    """Return how many answers the target is to write."""
    if asks_itself(settings):
        return settings.questions.count
    return sum(len(question.turns) for question in select_questions(settings, open_suite(settings), settings.limit))


def _gather_questions(settings: TrainSettings, target: Target, folder: Path, watch: Watch) -> list[Question]:
    if not asks_itself(settings):
        return select_questions(settings, open_suite(settings), settings.limit)
    batches = KeptBatches(folder / "questions")
    return OwnQuestions(target, settings.questions, settings.seed, batches.keep).write(watch)


def check_held_out(held_out: int, answers: int) -> None:
    """Raise InputError if no answer would be left to train on."""
    if held_out >= answers:
        raise InputError(f"held_out={held_out}: expected fewer than the {answers} answers, so that some are left to train on")
