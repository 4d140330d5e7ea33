"""An answer of another program, and the limits within which its counts agree. Programs differ in counting, but by no more.

A method's accepted lengths leave out a token of each turn (prefill's, or the end token), or have one more: Recycling counts the
prompt's last. Lookahead, at level 5, does not cut its last entry to the limit. decoding_steps is one less in Recycling, and one
more where prefill is a step without an entry.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from specbench.errors import InputError
from specbench.records.trial import BlockKey, QuestionId, Trial

LENGTHS = "accept_lengths"
FAILED = "ERROR"  # the text of a turn that failed
MISSING = 1  # tokens of a turn that its accepted lengths leave out
SURPLUS = 4  # tokens of a turn that only its accepted lengths have
OVERRUN = 64  # tokens after the end of a text: no program verifies longer paths


@dataclass(frozen=True)
class Answer:
    """The turns of a question: texts, new tokens, seconds and steps of each. lengths: of all steps, turn by turn, where known."""

    question_id: QuestionId
    category: str | None
    texts: list[str]
    new_tokens: list[int]
    seconds: list[float]
    steps: list[int]
    lengths: list[int] | None
    steps_key: str  # of the file: decoding_steps, or idxs

    @property
    def uncounted(self) -> bool:
        """Whether its program counted only steps, as EAGLE's autoregressive decoding does: new_tokens is 0 in all turns."""
        return self.steps_key == "idxs" and self.lengths is None and not any(self.new_tokens)

    def split_lengths(self) -> list[list[int] | None]:
        """Return the accepted lengths of each turn; if the steps do not add up to them, all belong to the first turn."""
        if self.lengths is None:
            return [None] * len(self.steps)
        if sum(self.steps) != len(self.lengths):
            return [self.lengths if turn == 0 else [] for turn in range(len(self.steps))]
        ends = [sum(self.steps[: turn + 1]) for turn in range(len(self.steps))]
        return [self.lengths[end - count : end] for end, count in zip(ends, self.steps, strict=True)]


def find_contradiction(answer: Answer) -> str | None:
    """Return how the counts of a question's turns contradict each other, or None."""
    tokens, steps, turns = sum(answer.new_tokens), sum(answer.steps), len(answer.texts)
    if answer.uncounted:
        return None
    if any(count == 0 and text != FAILED for count, text in zip(answer.new_tokens, answer.texts, strict=True)):
        return f"new_tokens is 0 in a turn whose text is not {FAILED}"
    if any(count and not steps for count, steps in zip(answer.new_tokens, answer.steps, strict=True)):
        return f"{answer.steps_key} is 0 in a turn with new_tokens"
    if answer.lengths is None:  # each step makes a token, but the one that only finds the end
        return f"{answer.steps_key} gives {steps} steps, but new_tokens {tokens} tokens" if steps > tokens + turns else None
    if not tokens - MISSING * turns <= sum(answer.lengths) <= tokens + SURPLUS * turns:
        return f"accept_lengths add up to {sum(answer.lengths)} tokens, but new_tokens to {tokens}"
    if abs(len(answer.lengths) - steps) > turns:
        return f"accept_lengths holds {len(answer.lengths)} steps, but {answer.steps_key} gives {steps}"
    return None


def describe_counts(answers: Sequence[Answer]) -> str | None:
    """Return by how much the counts of a file's answers disagree, or which are missing; None if they agree."""
    turns, tokens = sum(len(one.texts) for one in answers), sum(sum(one.new_tokens) for one in answers)
    steps = sum(sum(one.steps) for one in answers)
    if all(one.uncounted for one in answers):
        return f"new_tokens is 0 in all {turns:,} turns; idxs give {steps:,} steps"
    known = [one.lengths for one in answers if one.lengths is not None]
    if len(known) < len(answers):
        return f"no {LENGTHS}: {tokens:,} new_tokens in {steps:,} steps: {tokens / max(steps, 1):.2f} per step"
    misses = {"tokens": sum(map(sum, known)) - tokens, "steps": sum(map(len, known)) - steps}
    names = {"tokens": "new_tokens", "steps": answers[0].steps_key}
    said = [f"{abs(gap):,} {what} {_compare(gap)} than {names[what]}" for what, gap in misses.items() if gap]
    return f"{LENGTHS} give {' and '.join(said)} in {turns:,} turns" if said else None


def _compare(gap: int) -> str:
    return "more" if gap > 0 else "fewer"


def check_same_counts(first: Iterable[Trial], trials: Iterable[tuple[str, Trial]]) -> None:
    """Raise InputError for a turn that counts its text very differently from the baseline. trials: each with its file:line.

    A program may count what its last steps verified after the end; the text does not show it.
    """
    counted: dict[BlockKey, Trial] = {trial.block: trial for trial in first if not trial.failed}
    for place, trial in trials:
        other = counted.get(trial.block)
        if other is None or trial.failed or trial.output_sha256 != other.output_sha256:
            continue
        if abs(trial.new_tokens - other.new_tokens) > _bound_overrun(trial, other):
            said = f"new_tokens is {trial.new_tokens} for a text that the baseline counts as {other.new_tokens}"
            raise InputError(f"{place}: not an answer: {said}")


def _bound_overrun(*trials: Trial) -> int:
    """Return the tokens of two steps, the last and the one that only commits the end token."""
    return min(OVERRUN, 2 * max(map(_find_longest, trials)))


def _find_longest(trial: Trial) -> int:
    """Return the tokens of the longest step, or, where steps are only counted, what it can be at most."""
    if trial.committed is None:
        return max(1, trial.new_tokens - (trial.steps or 0) + 1)
    return max(trial.committed, default=1)
