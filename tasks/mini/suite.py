"""The embedded suite: held-out dialogues of the closed world as Spec-Bench questions, and their exact scores."""

import hashlib
import json
from collections.abc import Iterator
from itertools import islice
from typing import Literal

from tasks.mini.conversation import WRITERS as CONVERSATIONS
from tasks.mini.dialogue import Dialogue
from tasks.mini.generator import VERSION, WRITERS, generate_dialogues
from tasks.question import Question
from tasks.suite import Suite


class Mini(Suite):
    """`per_task` questions of each of the six tasks; two-turn conversations spread evenly over their eight categories."""

    def __init__(self, per_task: int, split: Literal["train", "test"] = "test", seed: int = 0) -> None:
        self.name = "mini"
        self.per_task, self.split, self.seed = per_task, split, seed
        rows = [[q.id, q.task, q.category, q.turns, q.reference] for q in self.questions()]
        self.fingerprint = hashlib.sha256(json.dumps([VERSION, rows]).encode()).hexdigest()

    def questions(self) -> list[Question]:
        return [question for task in WRITERS for question in self._of(task)]

    def _of(self, task: str) -> list[Question]:
        stream = generate_dialogues(task, self.split, self.seed)
        if task != "mt_bench":
            chosen = list(islice(stream, self.per_task))
        else:
            chosen = _draw_evenly(stream, self.per_task)
        return [_build_question(f"{task}-{number}", task, dialogue) for number, dialogue in enumerate(chosen, 1)]

    def score(self, question: Question, turn: int, text: str) -> float | None:
        """1 when every key of the turn's reference stands in the text, in order."""
        at = 0
        for key in json.loads(question.reference or "[]")[turn]:
            at = text.find(key, at)
            if at < 0:
                return 0.0
            at += len(key)
        return 1.0


def _draw_evenly(stream: Iterator[Dialogue], count: int) -> list[Dialogue]:
    """The first dialogues of each category, round robin, until there are `count`."""
    categories = list(CONVERSATIONS)
    waiting: dict[str, list[Dialogue]] = {category: [] for category in categories}
    chosen: list[Dialogue] = []
    while len(chosen) < count:
        wanted = categories[len(chosen) % len(categories)]
        while not waiting[wanted]:
            dialogue = next(stream)
            waiting[dialogue.category].append(dialogue)
        chosen.append(waiting[wanted].pop(0))
    return chosen


def _build_question(name: str, task: str, dialogue: Dialogue) -> Question:
    keys = [list(exchange.keys) for exchange in dialogue.exchanges]
    return Question(name, task, dialogue.category, dialogue.turns, json.dumps(keys))
