"""What ends an answer before the length limit: stop tokens, which may be forbidden at first, and texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

MARGIN = 8  # more tokens than a text has bytes: parts of a character, and those of which nothing is shown


class Ending(Protocol):
    """A rule that ends an answer by its tokens so far, besides stop tokens and the length."""

    def find_end(self, output: Sequence[int], checked: int, free: int) -> int | None:
        """Return the least length above `checked` at which the output ends, or None.

        free: number of tokens at the start that end nothing.
        """


@dataclass(frozen=True)
class StopStrings:
    """Texts that end an answer: its last token is the one with which its text first contains one of them.

    decode: token ids -> text, special tokens included. A text is looked for only in the last tokens, as many as it can have.
    """

    texts: tuple[str, ...]
    decode: Callable[[Sequence[int]], str] = field(compare=False)

    def find_end(self, output: Sequence[int], checked: int, free: int) -> int | None:
        """Find the end as if the tokens came one by one: whether n tokens end the answer depends on them alone."""
        first = max(checked, free) + 1  # the least length to look at
        if not self._holds(output, first, free):  # one look for the whole step
            return None
        return next((end for end in range(first, len(output) + 1) if self._holds(output[:end], end, free)), None)

    def _holds(self, output: Sequence[int], first: int, free: int) -> bool:
        """Return whether a text ends at token number `first` or a later one."""
        longest = max(len(text.encode()) for text in self.texts)
        shown = self.decode(output[max(free, first - longest - MARGIN) :])
        return any(text in shown for text in self.texts)


@dataclass(frozen=True)
class Forbidden:
    """Tokens that are not among the first `least` of an answer. mask (V,) bool."""

    mask: Tensor
    least: int

    @staticmethod
    def build(tokens: Sequence[int], least: int, vocabulary: int, device: torch.device) -> Forbidden | None:
        """Return None where nothing is forbidden."""
        mask = torch.zeros(vocabulary, dtype=torch.bool)
        mask[[token for token in tokens if token < vocabulary]] = True
        return Forbidden(mask.to(device), least) if least and mask.any() else None

    def mask_logits(self, logits: Tensor, depths: Tensor, written: int) -> Tensor:
        """(N, V) logits after nodes at depths (N,) -> the same with -inf for a token that may not come yet.

        written: tokens of the answer, the tree's root included; a node at depth d is followed by token number written + d + 1.
        """
        if written >= self.least:
            return logits
        early = depths < self.least - written
        return logits.masked_fill(early[:, None] & self.mask, -torch.inf)
