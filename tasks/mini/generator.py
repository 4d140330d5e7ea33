"""The stream of dialogues of a task and split. A dialogue belongs to one split by the hash of its text, so none is in two."""

import hashlib
import random
from collections.abc import Callable, Iterator

from tasks.mini import categories
from tasks.mini.conversation import write_mt_bench
from tasks.mini.dialogue import Dialogue

VERSION = "1"  # of the frozen suite: change a word of it and every trained head is void

WRITERS: dict[str, Callable[[random.Random, float], Dialogue]] = {
    "mt_bench": write_mt_bench,
    "translation": categories.write_translation,
    "summarization": categories.write_summarization,
    "qa": categories.write_qa,
    "math_reasoning": categories.write_math_reasoning,
    "rag": categories.write_rag,
}


def assign_split(dialogue: Dialogue) -> str:
    """One dialogue in eight is for testing, decided by its first question alone."""
    return "test" if hashlib.sha256(dialogue.turns[0].encode()).digest()[0] % 8 == 0 else "train"


def generate_dialogues(task: str, split: str, seed: int = 0, smallest: float = 1.0) -> Iterator[Dialogue]:
    """Endless dialogues of a task; the same for the same arguments in every process.

    The suite's own are of size 1; for training, sizes are drawn between `smallest` and 1.
    """
    rng = random.Random(f"{VERSION}/{task}/{split}/{seed}")
    while True:
        dialogue = WRITERS[task](rng, rng.uniform(smallest, 1.0))
        if assign_split(dialogue) == split:
            yield dialogue
