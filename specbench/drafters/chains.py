"""Chains of draft tokens that are chosen one after another, each after the drafter has read the one before."""

from collections.abc import Sequence

import torch
from torch import Tensor

from specbench.decoding.tree import DraftTree, Pick
from specbench.decoding.verify import Verifier
from specbench.decoding.verify_group import pick_group


class Chains:
    """The chains of a batch in the making. roots: (1,) each. lengths: of the chains; a row whose length is reached waits."""

    def __init__(self, verifiers: Sequence[Verifier], roots: Sequence[Tensor], lengths: Sequence[int]) -> None:
        self.verifiers, self.roots, self.lengths = verifiers, roots, lengths
        self.tokens = torch.cat(list(roots))  # (B,): the last of each
        self.picks: list[list[Pick]] = [[] for _ in roots]
        self.depth = 0

    @property
    def deepest(self) -> int:
        return max(self.lengths)

    def pick(self, logits: Tensor) -> None:
        """Choose the next token of every row that drafts one; nothing is drawn for the others. logits (B, V)."""
        rows = [row for row, length in enumerate(self.lengths) if length > self.depth]
        drafting = logits if len(rows) == len(self.lengths) else torch.cat([logits[row : row + 1] for row in rows])
        chosen = dict(zip(rows, pick_group([self.verifiers[row] for row in rows], drafting), strict=True))
        for row, pick in chosen.items():
            self.picks[row].append(pick)
        waiting = torch.split(self.tokens, 1)
        self.tokens = torch.cat([chosen[row][0] if row in chosen else token for row, token in enumerate(waiting)])
        self.depth += 1

    def cut(self, kept: Sequence[int]) -> None:
        """Drop the tokens after the first `kept` of each row."""
        self.picks = [own[:count] for own, count in zip(self.picks, kept, strict=True)]

    def build_trees(self) -> list[DraftTree]:
        return [DraftTree.from_picks(root, own) for root, own in zip(self.roots, self.picks, strict=True)]
