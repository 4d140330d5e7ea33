"""Additive masks: which entries of the KV store each node of a draft tree sees."""

from typing import NamedTuple

import torch
from torch import Tensor

from specbench.decoding.tree import DraftTree


class Reach(NamedTuple):
    """Which earlier positions a layer sees: the last `window` ones; those of its own chunk of `chunk`; None: all."""

    window: int | None
    chunk: int | None

    def limit(self, seen: Tensor, positions: Tensor, first: int) -> Tensor:
        """Return what of `seen` (n, S) stays in reach of the entries from `first` on. positions: (S,) of all entries."""
        nodes = positions[first:, None]
        if self.window is not None:
            seen = seen & (positions > nodes - self.window)
        if self.chunk is not None:
            seen = seen & (positions // self.chunk == nodes // self.chunk)
        return seen


EVERYTHING = Reach(None, None)


def share(mask: Tensor, heads: int) -> Tensor:
    """(..., N, S) -> (..., heads * N, S), for query heads that are rows of one product; on CUDA aligned for its kernels."""
    if heads > 1:
        mask = mask.repeat(*[1] * (mask.ndim - 2), heads, 1)
    return align_mask(mask) if mask.is_cuda else mask


def align_mask(mask: Tensor) -> Tensor:
    """Copy (..., N, S) so that CUDA's kernels can read it: row stride a multiple of 8 entries, start aligned to 16 bytes."""
    *rows, entries = mask.shape
    return mask.new_zeros(*rows, -(-entries // 8) * 8)[..., :entries].copy_(mask)


class ChainBias:
    """Masks of single sequences as slices of one buffer, in which the past is visible and new nodes see a causal triangle."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device
        self._past, self._nodes, self._longest = 0, 0, 0
        self._chain = self._tree = self._node = self._numbers = torch.empty(0)

    def build_tree_mask(self, tree: DraftTree, past: int) -> Tensor:
        """(N, past + N) additive mask of one tree after `past` committed tokens."""
        return self.build_chain_mask(len(tree), past) if tree.linear else self.build_visible_mask(past, tree.ancestors)

    def build_chain_mask(self, nodes: int, past: int) -> Tensor:
        """(N, past + N): every node sees itself and all before it."""
        self._grow(past, nodes)
        return self._chain[:nodes, self._past - past : self._past + nodes]

    def build_visible_mask(self, past: int, visible: Tensor) -> Tensor:
        """(N, past + M): each node sees the whole past, and of the last M entries those in `visible` (N, M) bool."""
        nodes, entries = visible.shape
        self._grow(past, entries)
        self._tree[:nodes, self._past : self._past + entries].zero_().masked_fill_(~visible, float("-inf"))
        return self._tree[:nodes, self._past - past : self._past + entries]

    def build_node_mask(self, filled: int, bucket: int) -> Tensor:
        """(1, 1, bucket): one node sees the first entries, its own the last of them, and nothing of the rest. A view."""
        self._lengthen(bucket)
        return self._node[self._longest - filled : self._longest - filled + bucket].view(1, 1, -1)

    def number(self, start: int, count: int) -> Tensor:
        """(1, count) int64: start, start + 1, … A view."""
        self._lengthen(start + count)
        return self._numbers[start : start + count].view(1, -1)

    def _lengthen(self, entries: int) -> None:
        if entries <= self._longest:
            return
        self._longest = max(entries, 2 * self._longest, 1024)
        seen = torch.zeros(self._longest, dtype=self.dtype, device=self.device)
        self._node = torch.cat([seen, torch.full_like(seen, float("-inf"))])
        self._numbers = torch.arange(self._longest, device=self.device)

    def _grow(self, past: int, nodes: int) -> None:
        if past <= self._past and nodes <= self._nodes:
            return
        self._past, self._nodes = max(past, 2 * self._past, 1024), max(nodes, self._nodes, 64)
        triangle = torch.full((self._nodes, self._nodes), float("-inf"), dtype=self.dtype, device=self.device).triu_(1)
        visible = torch.zeros(self._nodes, self._past, dtype=self.dtype, device=self.device)
        self._chain = torch.cat([visible, triangle], dim=1)
        self._tree = self._chain.clone()


def widen(mask: Tensor, bucket: int) -> Tensor:
    """Return (N, S) as (1, N, bucket): nothing is seen beyond S."""
    nodes, entries = mask.shape
    wide = mask.new_full((1, nodes, bucket), float("-inf"))
    wide[0, :, :entries] = mask
    return wide


def build_padded_mask(
    lengths: list[int], trees: list[DraftTree], reach: Reach, dtype: torch.dtype, entries: int | None = None
) -> Tensor:
    """(B, 1, N, S) mask of the general case, rows of different lengths; padding nodes see only entry 0.

    entries: S, if there are more than are filled.
    """
    nodes = max(len(tree) for tree in trees)
    entries = entries or max(length + len(tree) for length, tree in zip(lengths, trees, strict=True))
    visible = torch.zeros(len(trees), 1, nodes, entries, dtype=torch.bool, device=trees[0].tokens.device)
    visible[:, :, :, 0] = True
    for row, (length, tree) in enumerate(zip(lengths, trees, strict=True)):
        past = torch.ones(len(tree), length, dtype=torch.bool, device=visible.device)
        seen = torch.cat([past, tree.ancestors], dim=1)  # (n, length + n)
        if reach != EVERYTHING:
            positions = torch.cat([torch.arange(length, device=visible.device), length + tree.depths])
            seen = reach.limit(seen, positions, length)
        visible[row, 0, : len(tree), : length + len(tree)] = seen
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, float("-inf"))
