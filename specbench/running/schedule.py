"""Who runs, and in which order: arms and randomised blocks. Pure: nothing is timed, read or written here.

A block is one (repeat, question, turn): every arm runs it once, in an order drawn from the seed. A method's engines follow one
another in it: on a shared machine turns next to each other differ by a few per cent, those some seconds apart by twenty.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from specbench.decoding.sampling import Sampling
from specbench.engine.base import Engine
from specbench.errors import InputError
from tasks.question import Question


@dataclass(frozen=True)
class Arm:
    """A method on an engine: `label` is its name in the run, `method` its name on that engine."""

    label: str
    method: str
    engine: Engine

    @property
    def state(self) -> str:
        """warm: what the method learns outlives a turn."""
        return "warm" if self.engine.is_warm(self.method) else "cold"

    @property
    def kind(self) -> str:
        """measured, or synthetic: a yardstick that knows the answer."""
        return self.engine.get_kind(self.method)


@dataclass(frozen=True)
class Schedule:
    repeats: int
    seed: int
    context: str  # reference: turn 2 continues from autoregressive's answer; own: from each arm's own
    sampling: Sampling

    def get_seed(self, repeat: int) -> int:
        """Above temperature 0 every repeat has a seed of its own; below it nothing is drawn but the order of the arms."""
        return self.seed + repeat if self.sampling.temperature > 0 else self.seed

    def get_sampling(self, block: "Block") -> Sampling:
        """With random numbers for this turn of this question, the same for every arm."""
        if self.sampling.temperature == 0:
            return self.sampling
        place = f"{self.get_seed(block.repeat)}/{block.question.id}/{block.turn}"
        return replace(self.sampling, seed=random.Random(place).getrandbits(48))


@dataclass(frozen=True)
class Block:
    repeat: int
    question: Question
    turn: int
    order: tuple[Arm, ...]


def schedule_blocks(questions: Sequence[Question], arms: Sequence[Arm], repeat: int, seed: int) -> Iterator[Block]:
    """One repeat: every turn of every question, turns in their order; the same arms and seed give the same order."""
    by_label = sorted(arms, key=lambda arm: arm.label)
    methods = [[arm for arm in by_label if arm.method == method] for method in dict.fromkeys(arm.method for arm in by_label)]
    for question in questions:
        for turn in range(len(question.turns)):
            draw = random.Random(f"{seed}/{repeat}/{question.id}/{turn}")
            drawn = draw.sample(methods, len(methods))
            yield Block(repeat, question, turn, tuple(arm for own in drawn for arm in draw.sample(own, len(own))))


def build_arms(engines: Mapping[str, Engine], labels: Sequence[str]) -> list[Arm]:
    """Every method on the first engine, and beside it (`method@engine`) on each further engine that has it.

    Raises InputError when the first engine lacks a method.
    """
    first, *others = engines
    there = [label for label in labels if engines[first].has(label)]
    if missing := [label for label in labels if label not in there]:
        raise InputError(f"engine {first} has no method {', '.join(missing)}; of the chosen ones it has {', '.join(there)}")
    arms = [Arm(label, label, engines[first]) for label in labels]
    beside = [Arm(f"{label}@{name}", label, engines[name]) for name in others for label in labels if engines[name].has(label)]
    return arms + beside
