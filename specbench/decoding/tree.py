"""The draft tree: candidate continuations of one sequence, rooted at the last committed token."""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=512)
def _chain_parents(nodes: int, device: torch.device) -> Tensor:
    return torch.arange(-1, nodes - 1, device=device)


@dataclass(frozen=True)
class DraftTree:
    """Node 0 is the root, whose KV entry does not exist yet; every parent stands before its children.

    tokens (N,) int64; parents (N,) int64, parents[0] = -1; probs (P, V) or None: the drafter's distribution, one row per expanded
    parent, None for a deterministic draft; scratch (N,) bool or None: nodes computed but never accepted.
    """

    tokens: Tensor
    parents: Tensor
    probs: Tensor | None = None
    scratch: Tensor | None = None
    linear: bool = False  # a chain: every node's parent is the node before it

    @staticmethod
    def chain(tokens: Tensor, probs: Tensor | None = None) -> "DraftTree":
        """A tree without branches. tokens (N,) int64, the root first."""
        return DraftTree(tokens, _chain_parents(len(tokens), tokens.device), probs, linear=True)

    def __len__(self) -> int:
        return self.tokens.shape[0]

    @cached_property
    def drafted(self) -> int:
        """Nodes offered for acceptance: the root and scratch nodes do not count."""
        return len(self) - 1 - (0 if self.scratch is None else int(self.scratch.sum()))

    @cached_property
    def ancestors(self) -> Tensor:
        """(N, N) bool: row i is true at i and at every node on the way from i to the root."""
        if self.linear:
            return torch.ones(len(self), len(self), dtype=torch.bool, device=self.tokens.device).tril()
        mask = torch.eye(len(self), dtype=torch.bool)
        for node, parent in enumerate(self.parents.tolist()[1:], start=1):
            mask[node] |= mask[parent]
        return mask.to(self.tokens.device)

    @cached_property
    def depths(self) -> Tensor:
        """(N,) int64: steps from the root."""
        return self.parents + 1 if self.linear else self.ancestors.sum(dim=1) - 1

    @cached_property
    def depth(self) -> int:
        """Depth of the deepest node that can be accepted."""
        if self.linear:
            return len(self) - 1
        offered = self.depths if self.scratch is None else self.depths[~self.scratch]
        return int(offered.max())
