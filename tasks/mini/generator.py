"""The stream of dialogues of a task and split. The hash of a dialogue's text decides its split, so no dialogue is in two."""

import hashlib
import random
from collections.abc import Callable, Iterator

from tasks.mini import categories
from tasks.mini.conversation import write_mt_bench
from tasks.mini.dialogue import Dialogue

VERSION = "1"  # of the frozen suite: changing a word of it invalidates every trained head

WRITERS: dict[str, Callable[[random.Random, float], Dialogue]] = {
    "mt_bench": write_mt_bench,
    "translation": categories.write_translation,
    "summarization": categories.write_summarization,
    "qa": categories.write_qa,
    "math_reasoning": categories.write_math_reasoning,
    "rag": categories.write_rag,
}


def assign_split(dialogue: Dialogue) -> str:
    """Assign one dialogue in eight to the test split, by only its first question."""
    return "test" if hashlib.sha256(dialogue.turns[0].encode()).digest()[0] % 8 == 0 else "train"


def generate_dialogues(task: str, split: str, seed: int = 0, smallest: float = 1.0) -> Iterator[Dialogue]:
    """Yield endless dialogues of a task, the same in every process. Sizes are between `smallest` and 1, the suite's."""
    rng = random.Random(f"{VERSION}/{task}/{split}/{seed}")
    while True:
        dialogue = WRITERS[task](rng, rng.uniform(smallest, 1.0))
        if assign_split(dialogue) == split:
            yield dialogue
