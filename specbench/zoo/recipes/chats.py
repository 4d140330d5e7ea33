"""Writes the embedded suite's training dialogues, mixed with drills, as chats for `specbench train data=FILE`.

python -m specbench.zoo.recipes.chats FILE [--count N] [--whole]
"""

import argparse
import json
import random
from pathlib import Path

from specbench.zoo.recipes.batches import draw_pools
from tasks.mini.dialogue import Dialogue

SEED = 21
SMALLEST = 0.05  # of a dialogue's size; the suite's own have size 1
DRILLS = {"repeat": 0.23, "vocabulary": 0.27, "arithmetic": 0.13, "facts": 0.18}  # shares of all chats
COUNT = 48_000


def to_messages(dialogue: Dialogue) -> list[dict[str, str]]:
    return [
        {"role": role, "content": text}
        for exchange in dialogue.exchanges
        for role, text in (("user", exchange.ask), ("assistant", exchange.answer))
    ]


def write_chats(file: Path, count: int, whole: bool = False) -> None:
    """Write `count` chats. whole: only dialogues of the suite's own size, without drills."""
    drills, smallest = ({}, 1.0) if whole else (DRILLS, SMALLEST)
    dialogues = next(draw_pools(random.Random(SEED), count, SEED, smallest, drills))
    with file.open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps({"messages": to_messages(dialogue)}) + "\n" for dialogue in dialogues)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--whole", action="store_true", help="only dialogues of the suite's own size")
    options = parser.parse_args()
    write_chats(options.file, options.count, options.whole)


if __name__ == "__main__":
    main()
