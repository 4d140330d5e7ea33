"""The embedded suite's training dialogues as a file of chats, which `specbench train data=FILE` reads.

python -m specbench.zoo.chats FILE [--per-task N]
"""

import argparse
import json
from itertools import islice
from pathlib import Path

from tasks.mini.dialogue import Dialogue
from tasks.mini.generator import WRITERS, dialogues

SEED = 21
SMALLEST = 0.3  # of a dialogue's size; the suite's own are of size 1


def messages(dialogue: Dialogue) -> list[dict[str, str]]:
    return [
        {"role": role, "content": text}
        for exchange in dialogue.exchanges
        for role, text in (("user", exchange.ask), ("assistant", exchange.answer))
    ]


def write_chats(file: Path, per_task: int) -> None:
    with file.open("w", encoding="utf-8") as lines:
        for task in WRITERS:
            for dialogue in islice(dialogues(task, "train", SEED, SMALLEST), per_task):
                lines.write(json.dumps({"messages": messages(dialogue)}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--per-task", type=int, default=2000)
    options = parser.parse_args()
    write_chats(options.file, options.per_task)


if __name__ == "__main__":
    main()
