"""The embedded suite's training dialogues, short and long, and exercises between them, as a file of chats for
`specbench train data=FILE`.

python -m specbench.zoo.recipes.chats FILE [--count N] [--whole]
"""

import argparse
import json
import random
from pathlib import Path

from specbench.zoo.recipes.batches import SHARES
from specbench.zoo.recipes.drills import generate_drills
from tasks.mini.dialogue import Dialogue
from tasks.mini.generator import generate_dialogues

SEED = 21
SMALLEST = 0.05  # of a dialogue's size; the suite's own are of size 1
DRILLS = {"repeat": 0.23, "vocabulary": 0.27, "arithmetic": 0.13, "facts": 0.18}  # shares of all chats
COUNT = 48_000


def to_messages(dialogue: Dialogue) -> list[dict[str, str]]:
    return [
        {"role": role, "content": text}
        for exchange in dialogue.exchanges
        for role, text in (("user", exchange.ask), ("assistant", exchange.answer))
    ]


def write_chats(file: Path, count: int, whole: bool = False) -> None:
    """whole: dialogues of the suite's own size alone, no short ones and no exercises."""
    rng = random.Random(SEED)
    drills, smallest = ({}, 1.0) if whole else (DRILLS, SMALLEST)
    shares = {task: share * (1 - sum(drills.values())) for task, share in SHARES.items()} | drills
    streams = {task: generate_dialogues(task, "train", SEED, smallest) for task in SHARES} | {
        name: generate_drills(name, SEED) for name in drills
    }
    with file.open("w", encoding="utf-8") as lines:
        for kind in rng.choices(list(shares), weights=list(shares.values()), k=count):
            lines.write(json.dumps({"messages": to_messages(next(streams[kind]))}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--whole", action="store_true", help="dialogues of the suite's own size alone")
    options = parser.parse_args()
    write_chats(options.file, options.count, options.whole)


if __name__ == "__main__":
    main()
