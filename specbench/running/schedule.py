"""What runs, and in which order: arms and randomised blocks. Pure: nothing is timed, read or written here.

A block is one (repeat, group of questions, turn), a group one question unless the run is batched. Every arm runs it once, in an
order drawn from the seed. The engines of one method follow each other: on a shared machine, adjacent turns differ by a few per
cent, turns some seconds apart by twenty.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

from specbench.decoding.sampling import Sampling
from specbench.engine.base import Engine
from specbench.errors import InputError
from specbench.records.trial import BASELINE, BlockKey, QuestionId, name_unit
from tasks.question import Question


@dataclass(frozen=True)
class Arm:
    """A method on an engine. label: its name in the run; method: its name on that engine."""

    label: str
    method: str
    engine: Engine

    @property
    def state(self) -> str:
        """warm if what the method learns is kept after a turn, else cold."""
        return "warm" if self.engine.is_warm(self.method) else "cold"

    @property
    def kind(self) -> str:
        """measured, or synthetic for a method that is given the answer."""
        return self.engine.get_kind(self.method)


@dataclass(frozen=True)
class Schedule:
    repeats: int
    seed: int
    context: str  # reference: turn 2 continues from autoregressive's answer; own: from each arm's own
    sampling: Sampling
    batch: int = 1  # questions decoded side by side
    concurrency: int = 1  # requests that a server is sent at a time

    def get_seed(self, repeat: int) -> int:
        """Return a seed of the repeat's own above temperature 0; at 0, only the order of the arms is random."""
        return self.seed + repeat if self.sampling.temperature > 0 else self.seed

    def get_sampling(self, block: "Block", question: Question) -> Sampling:
        """Return the sampling of a question, with a seed for its turn that all arms share, whatever group it is in."""
        if self.sampling.temperature == 0:
            return self.sampling
        place = f"{self.get_seed(block.repeat)}/{question.id}/{block.turn}"
        return replace(self.sampling, seed=random.Random(place).getrandbits(48))


@dataclass(frozen=True)
class Group:
    """Questions decoded side by side. number: in the run; None: a question by itself in a run without batches."""

    questions: tuple[Question, ...]
    number: int | None = None

    @property
    def id(self) -> QuestionId:
        return name_unit(self.questions[0].id, self.number)

    @property
    def turns(self) -> int:
        return len(self.questions[0].turns)


@dataclass(frozen=True)
class Block:
    repeat: int
    group: Group
    turn: int
    order: tuple[Arm, ...]
    attempt: int = 1

    @property
    def key(self) -> BlockKey:
        return (self.repeat, self.group.id, self.turn)

    def describe_turn(self, arm: Arm, place: int) -> dict[str, Any]:
        """Return what the record of an arm's turn says of its place in the run. place: of the question in its group."""
        group, question = self.group, self.group.questions[place]
        return {
            "task": question.task,
            "category": question.category,
            "question_id": question.id,
            "turn": self.turn,
            "turns": len(question.turns),
            "method": arm.label,
            "repeat": self.repeat,
            "state": arm.state,
            "kind": arm.kind,
            "attempt": self.attempt,
            "arms": len(self.order) * len(group.questions) if self.attempt > 1 else None,
            "batch": len(group.questions),
            "group": group.number,
            "place": None if group.number is None else place,
        }

    def plan_again(self, attempt: int) -> "Block":
        """Return a later attempt at the block, without its warm arms: their state has seen the answer."""
        return replace(self, order=tuple(arm for arm in self.order if arm.state == "cold"), attempt=attempt)


def form_groups(questions: Sequence[Question], batch: int) -> list[Group]:
    """Return groups of questions of one task with the same number of turns, in order; those left over make smaller groups."""
    if batch == 1:
        return [Group((question,)) for question in questions]
    alike: dict[tuple[str, int], list[Question]] = {}
    for question in questions:
        alike.setdefault((question.task, len(question.turns)), []).append(question)
    parts = [every[start : start + batch] for every in alike.values() for start in range(0, len(every), batch)]
    return [Group(tuple(part), number) for number, part in enumerate(parts)]


def order_groups(groups: Sequence[Group], seed: int) -> list[Group]:
    """Return the groups in an order drawn from the seed, for a run that may stop at any of them: the tasks in turn.

    Inside a task its categories are spread evenly, and each group is equally likely to be among the first, whatever its category.
    Groups smaller than the largest, which no speedup counts, come last.
    """
    by_task: dict[str, dict[str, list[Group]]] = {}
    for group in groups:
        by_task.setdefault(group.questions[0].task, {}).setdefault(group.questions[0].category, []).append(group)
    drawn = [_spread(categories, f"{seed}/{task}") for task, categories in by_task.items()]
    rounds = [[group for group in one if group is not None] for one in zip_longest(*drawn)]
    order = [group for number, one in enumerate(rounds) for group in random.Random(f"{seed}/{number}").sample(one, len(one))]
    largest = max((len(group.questions) for group in groups), default=1)
    return sorted(order, key=lambda group: len(group.questions) < largest)


def _spread(categories: Mapping[str, Sequence[Group]], seed: str) -> list[Group]:
    """Return a task's groups: the k-th drawn of a category's n lies at (k + u) / n, u drawn for the category."""
    places = []
    for name, members in categories.items():
        draw = random.Random(f"{seed}/{name}")
        start = draw.random()
        places += [((k + start) / len(members), group) for k, group in enumerate(draw.sample(members, len(members)))]
    return [group for _, group in sorted(places, key=lambda place: place[0])]


def schedule_blocks(groups: Sequence[Group], arms: Sequence[Arm], repeat: int, seed: int) -> Iterator[Block]:
    """Yield one repeat: every turn of every group, turns in order. The same arms and seed give the same order."""
    by_label = sorted(arms, key=lambda arm: arm.label)
    methods = [[arm for arm in by_label if arm.method == method] for method in dict.fromkeys(arm.method for arm in by_label)]
    for group in groups:
        for turn in range(group.turns):
            draw = random.Random(f"{seed}/{repeat}/{group.id}/{turn}")
            shuffled = draw.sample(methods, len(methods))
            yield Block(repeat, group, turn, tuple(arm for engines in shuffled for arm in draw.sample(engines, len(engines))))


def order_questions(questions: Sequence[Question], repeat: int, seed: int) -> list[Question]:
    """Return the questions in an order drawn for the repeat, the same for every arm."""
    return random.Random(f"{seed}/{repeat}/load").sample(questions, len(questions))


def order_passes(arms: Sequence[Arm], repeat: int, seed: int) -> list[Arm]:
    """Return the arms in an order drawn for the repeat; the first repeat begins with the baseline, which others continue."""
    by_label = sorted(arms, key=lambda arm: arm.label)
    shuffled = random.Random(f"{seed}/{repeat}/passes").sample(by_label, len(by_label))
    return sorted(shuffled, key=lambda arm: repeat == 0 and arm.label != BASELINE)


def build_arms(engines: Mapping[str, Engine], labels: Sequence[str]) -> list[Arm]:
    """Put every method on the first engine, and as `method@engine` on each further engine that has it.

    Raises InputError if the first engine lacks a method.
    """
    first, *others = engines
    known = [label for label in labels if engines[first].has(label)]
    if missing := [label for label in labels if label not in known]:
        raise InputError(f"engine {first} has no method {', '.join(missing)}; of the chosen ones it has {', '.join(known)}")
    arms = [Arm(label, label, engines[first]) for label in labels]
    further = [Arm(f"{label}@{name}", label, engines[name]) for name in others for label in labels if engines[name].has(label)]
    return arms + further
