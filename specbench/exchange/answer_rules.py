"""What the counts of an answer file of Spec-Bench have in common. Its programs count differently, but none by more than this.

A method's accepted lengths leave out a token of each turn (prefill's, or the end token), or have one more: Recycling counts the
prompt's last. Lookahead, at level 5, does not cut its last entry to the limit. decoding_steps is one less in Recycling, and one
more where prefill is a step without an entry.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from specbench.errors import InputError
from specbench.records.trial import BlockKey, Trial

FAILED = "ERROR"  # the text of a turn that failed
MISSING = 1  # tokens of a turn that its accepted lengths leave out
SURPLUS = 4  # tokens of a turn that only its accepted lengths have
OVERRUN = 64  # tokens after the end of a text: no program verifies longer paths


def find_contradiction(choice: Mapping[str, Any]) -> str | None:
    """Return what the counts of a question's turns contradict, or None."""
    tokens, steps, lengths = sum(choice["new_tokens"]), sum(choice["decoding_steps"]), choice["accept_lengths"]
    turns = len(choice["turns"])
    if any(count == 0 and text != FAILED for count, text in zip(choice["new_tokens"], choice["turns"], strict=True)):
        return f"new_tokens is 0 in a turn whose text is not {FAILED}"
    if not tokens - MISSING * turns <= sum(lengths) <= tokens + SURPLUS * turns:
        return f"accept_lengths make {sum(lengths)} tokens, but new_tokens {tokens}"
    if abs(len(lengths) - steps) > turns:
        return f"accept_lengths holds {len(lengths)} steps, but decoding_steps makes {steps}"
    return None


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
            raise InputError(f"{place}: not an answer of Spec-Bench: {said}")


def _bound_overrun(*trials: Trial) -> int:
    """Return the tokens of two steps, the last and the one that only commits the end token."""
    longest = max((count for trial in trials for count in trial.committed or ()), default=1)
    return min(OVERRUN, 2 * longest)
