"""The embedded suite: held-out dialogues of the closed world as Spec-Bench questions, scored exactly."""

import hashlib
import json
from collections.abc import Iterator
from itertools import islice
from typing import Annotated, Literal

from specbench.bounds import Seed, Within
from tasks.mini.conversation import WRITERS as CONVERSATIONS
from tasks.mini.dialogue import Dialogue
from tasks.mini.generator import VERSION, WRITERS, generate_dialogues
from tasks.question import Question
from tasks.suite import Suite


class Mini(Suite):
    """`per_task` questions of each of the six tasks; two-turn conversations spread evenly over their eight categories."""

    def __init__(
        self, per_task: Annotated[int, Within(0, 20_000)], split: Literal["train", "test"] = "test", seed: Seed = 0
    ) -> None:
        self.name = "mini"
        self.per_task, self.split, self.seed = per_task, split, seed
        rows = [[q.id, q.task, q.category, q.turns, q.reference] for q in self.questions()]
        self.fingerprint = hashlib.sha256(json.dumps([VERSION, rows]).encode()).hexdigest()

    def questions(self) -> list[Question]:
        return [question for task in WRITERS for question in self._list_questions(task)]

    def _list_questions(self, task: str) -> list[Question]:
        stream = generate_dialogues(task, self.split, self.seed)
        chosen = _draw_evenly(stream, self.per_task) if task == "mt_bench" else islice(stream, self.per_task)
        return [_build_question(f"{task}-{number}", task, dialogue) for number, dialogue in enumerate(chosen, 1)]

    def score(self, question: Question, turn: int, text: str) -> float | None:
        """Return 1 if the text contains every key of the turn's reference in order, else 0."""
        position = 0
        for key in json.loads(question.reference or "[]")[turn]:
            position = text.find(key, position)
            if position < 0:
                return 0.0
            position += len(key)
        return 1.0


def _draw_evenly(stream: Iterator[Dialogue], count: int) -> list[Dialogue]:
    """Return the first dialogues of each category, round robin, until there are `count`."""
    categories = list(CONVERSATIONS)
    waiting: dict[str, list[Dialogue]] = {category: [] for category in categories}
    chosen: list[Dialogue] = []
    while len(chosen) < count:
        category = categories[len(chosen) % len(categories)]
        while not waiting[category]:
            dialogue = next(stream)
            waiting[dialogue.category].append(dialogue)
        chosen.append(waiting[category].pop(0))
    return chosen


def _build_question(name: str, task: str, dialogue: Dialogue) -> Question:
    keys = [list(exchange.keys) for exchange in dialogue.exchanges]
    return Question(name, task, dialogue.category, dialogue.turns, json.dumps(keys))
