"""Questions that the target writes itself: it continues the opening of a user's turn in its own chat format.

Xu et al. 2024 (Magpie): an instruct model was trained on such turns, so what it writes there resembles what its users ask.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

from specbench.decoding.loop import Generation
from specbench.decoding.sampling import Sampling
from specbench.errors import InputError, name_place
from specbench.models.chat import decode_answer, render_prompt
from specbench.models.target import Target
from specbench.models.texts import GRAM, SIDE_BY_SIDE, Keep, continue_prompts
from specbench.setup.settings import QuestionSettings
from specbench.watch import Watch
from tasks.question import Question
from tasks.rows import read_rows

SHORTEST = 3  # characters of a question
MOST_TRIES = 4  # questions written per requested question, at most; a target whose questions are mostly unusable is refused
MOST_BATCHES = 1_000_000  # per seed
EXAMPLES = ("Hello", "Why 7?", "-", "ä")  # messages whose prompts have only the format in common


@dataclass(frozen=True)
class UserTurn:
    """Ids of a prompt before the first message (T,), and the id after it that ends the turn."""

    before: list[int]
    end: int


def find_user_turn(target: Target) -> UserTurn:
    """Return what surrounds a first message. Raises InputError for a format without turns."""
    prompts = [render_prompt(target.chat, [(message, None)], target.tokenizer) for message in EXAMPLES]
    before, after = _share_start(prompts), _share_start([prompt[::-1] for prompt in prompts])[::-1]
    if target.chat.format != "template" or not before or not after:  # a text that marks the end of a turn may occur in a question
        raise InputError(f"data=self: the format {target.chat.format} does not mark a user's turn; expected data=FILE")
    return UserTurn(before, after[0])


def _share_start(rows: Sequence[list[int]]) -> list[int]:
    """Return the ids that all rows begin with."""
    return [ids[0] for ids in takewhile(lambda ids: len(set(ids)) == 1, zip(*rows, strict=False))]


class KnownTexts:
    """Texts that must not be trained on, stored as runs of GRAM tokens; shorter texts are stored whole."""

    def __init__(self, paths: Sequence[str], target: Target) -> None:
        self._tokenizer = target.tokenizer
        self._runs = {run for path in paths for text in _read_strings(Path(path).expanduser()) for run in self._cut(text)}

    def hold(self, text: str) -> bool:
        """Return whether the text shares a run with a known one."""
        return not self._runs.isdisjoint(self._cut(text))

    def _cut(self, text: str) -> list[tuple[int, ...]]:
        ids = self._tokenizer(text.strip(), add_special_tokens=False).input_ids
        return [tuple(ids[start : start + GRAM]) for start in range(max(1, len(ids) - GRAM + 1))]


def _read_strings(path: Path) -> Iterator[str]:
    """Yield every string of a data file, in any schema."""
    with name_place("questions.avoid: "):
        rows = read_rows(path)
    for _, row in rows:
        yield from _iter_strings(row)


def _iter_strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | Mapping):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _iter_strings(part)


class OwnQuestions:
    """Draws questions from the target, each once, in batches that depend only on the seed."""

    def __init__(self, target: Target, settings: QuestionSettings, seed: int, keep: Keep) -> None:
        """keep: keeps finished batches."""
        self.target, self.settings, self.seed, self.keep = target, settings, seed, keep
        self.turn = find_user_turn(target)
        self.known = KnownTexts(settings.avoid, target)

    def write(self, watch: Watch) -> list[Question]:
        """Return as many questions as were requested. Raises InputError if too few of those that the target writes are usable."""
        wanted = self.settings.count
        found: dict[str, str] = {}
        for batch in range(MOST_TRIES * math.ceil(wanted / SIDE_BY_SIDE)):
            for text in self.keep(batch, partial(self._draw_batch, batch)):
                found.setdefault(text.casefold(), text)
            watch("the target writes questions", min(len(found), wanted), wanted)
            if len(found) >= wanted:
                return [Question(f"own-{i}", "own", "own", (text,)) for i, text in enumerate(list(found.values())[:wanted])]
        raise InputError(f"questions.count={wanted}: only {len(found)} of the questions that the target wrote are usable")

    def _draw_batch(self, batch: int) -> list[str]:
        """Return the usable questions of one batch. Row r continues opening r, in turn."""
        openings = self.settings.openings
        begun = [openings[row % len(openings)] for row in range(SIDE_BY_SIDE)]
        texts = map(self._read_question, begun, self._continue(begun, batch))
        return [text for text in texts if text is not None]

    def _continue(self, openings: list[str], batch: int) -> list[Generation]:
        chosen = self.settings
        stops = (self.turn.end, *self.target.model.eos_ids)
        seed = self.seed * MOST_BATCHES + batch
        sampling = Sampling(chosen.temperature, chosen.top_p, 0, chosen.max_new_tokens, stops, seed)
        encode = self.target.tokenizer
        prompts = [[*self.turn.before, *encode(opening, add_special_tokens=False).input_ids] for opening in openings]
        return continue_prompts(self.target, prompts, sampling)

    def _read_question(self, opening: str, out: Generation) -> str | None:
        """Return the question, or None: cut off, too short, with special tokens or broken characters, or known."""
        ids, tokenizer = out.output_ids[:-1], self.target.tokenizer
        text = (opening + decode_answer(self.target.chat, tokenizer, ids)).strip()
        broken = "\ufffd" in text or not set(ids).isdisjoint(tokenizer.all_special_ids)
        unfit = out.finish_reason != "eos" or len(text) < SHORTEST or broken or self.known.hold(text)
        return None if unfit else text
