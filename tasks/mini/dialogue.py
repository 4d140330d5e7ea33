"""The types of generated dialogues, and what all writers share."""

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Exchange:
    """One turn: the question, the right answer, and the keys that a right answer contains in order."""

    ask: str
    answer: str
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Dialogue:
    category: str
    exchanges: tuple[Exchange, ...]

    @property
    def turns(self) -> tuple[str, ...]:
        return tuple(exchange.ask for exchange in self.exchanges)


def choose_mostly(rng: random.Random, *choices: str) -> str:
    """Choose the first text most of the time: the style varies as in real text, but greedy decoding has a clear favourite."""
    return rng.choices(choices, weights=[8] + [2 / (len(choices) - 1)] * (len(choices) - 1))[0]


def join_words(words: list[str]) -> str:
    """Join to `a, b and c`."""
    return ", ".join(words[:-1]) + " and " + words[-1]
