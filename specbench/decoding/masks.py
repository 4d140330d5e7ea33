"""Additive masks: which entries of the KV store each node of a draft tree sees."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from specbench.decoding.tree import DraftTree
from specbench.decoding.tree_batch import pad_rows, stack_ancestors
from specbench.machine.devices import upload


class Reach(NamedTuple):
    """Which earlier positions a layer sees: the last `window` ones; those of its own chunk of `chunk`; None: all."""

    window: int | None
    chunk: int | None

    def limit(self, seen: Tensor, entries: Tensor, nodes: Tensor) -> Tensor:
        """Return what of `seen` (B, N, S) is in reach. entries (B, S), nodes (B, N): their positions."""
        entries, nodes = entries[:, None], nodes[:, :, None]
        if self.window is not None:
            seen = seen & (entries > nodes - self.window)
        if self.chunk is not None:
            seen = seen & (entries // self.chunk == nodes // self.chunk)
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
    """Masks of a batch.

    Those of single sequences are slices of one buffer, in which the past is visible and new nodes see a triangle.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device
        self._past, self._nodes, self._longest = 0, 0, 0
        self._chain = self._tree = self._node = self._numbers = torch.empty(0)
        self._located: tuple[tuple[int, ...], Tensor] = (), torch.empty(0)

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
        """(1, 1, bucket): one node sees the first `filled` entries, the last of which is its own, and nothing else. A view."""
        self._lengthen(bucket)
        return self._node[self._longest - filled : self._longest - filled + bucket].view(1, 1, -1)

    def number(self, start: int, count: int) -> Tensor:
        """(1, count) int64: start, start + 1, … A view."""
        self._lengthen(start + count)
        return self._numbers[start : start + count].view(1, -1)

    def locate(self, lengths: Sequence[int]) -> Tensor:
        """Return the lengths of a batch's rows as (B, 1) int64.

        The latest tensor is kept, and shifted if all lengths have grown alike.
        """
        if len(lengths) == 1:
            return self.number(lengths[0], 1)
        known, located = self._located
        growth = {new - old for new, old in zip(lengths, known, strict=True)} if len(known) == len(lengths) else set()
        if growth != {0}:
            moved = located + growth.pop() if len(growth) == 1 else upload(torch.tensor(lengths), self.device)[:, None]
            self._located = tuple(lengths), moved
        return self._located[1]

    def build_chain_masks(self, lengths: Sequence[int], nodes: int) -> Tensor:
        """(B, N, S): chains of `nodes` nodes after rows of these lengths; S entries hold the longest."""
        if len(lengths) == 1:
            return self.build_chain_mask(nodes, lengths[0])[None]
        return self._build_causal_masks(lengths, nodes, max(lengths) + nodes)

    def build_visible_masks(self, lengths: Sequence[int], visible: Tensor) -> Tensor:
        """(B, N, S): nodes see all of their row's past, and of the M entries after it those in `visible` (B, N, M) bool."""
        if len(lengths) == 1:
            return self.build_visible_mask(lengths[0], visible[0])[None]
        return self._fill(_see(self.locate(lengths), visible, max(lengths) + visible.shape[2]))

    def build_padded_mask(self, lengths: Sequence[int], trees: Sequence[DraftTree], reach: Reach, entries: int) -> Tensor:
        """(B, N, S) mask of the general case: trees of different sizes after different lengths. entries: S."""
        if reach == EVERYTHING and all(tree.linear for tree in trees):
            return self._build_causal_masks(lengths, max(map(len, trees)), entries)
        visible, starts = stack_ancestors(trees), self.locate(lengths)
        most = max(entries, max(lengths) + visible.shape[1])
        seen = _see(starts, visible, most)
        if reach != EVERYTHING:
            nodes = starts + pad_rows([tree.depths for tree in trees])
            positions = self.number(0, most).repeat(len(trees), 1)
            positions.scatter_(1, _list_places(starts, visible.shape[1]), nodes)
            seen = reach.limit(seen, positions, nodes)[:, :, :entries]
            seen[:, :, 0] |= ~seen.any(dim=2)  # padding, which is cut or out of reach
        return self._fill(seen[:, :, :entries])

    def _build_causal_masks(self, lengths: Sequence[int], nodes: int, entries: int) -> Tensor:
        own = self.locate(lengths) + self.number(0, nodes)  # (B, N): each node's entry, the last one that it sees
        return self._fill(self.number(0, entries) <= own[:, :, None])

    def _fill(self, seen: Tensor) -> Tensor:
        return torch.zeros(seen.shape, dtype=self.dtype, device=seen.device).masked_fill_(~seen, float("-inf"))

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
    """Return (B, N, S) as (B, N, bucket): nothing is seen beyond S."""
    batch, nodes, entries = mask.shape
    wide = mask.new_full((batch, nodes, bucket), float("-inf"))
    wide[:, :, :entries] = mask
    return wide


def _see(starts: Tensor, visible: Tensor, entries: int) -> Tensor:
    """(B, N, S) bool: the entries before each row's start (B, 1), and of the M from there on those in `visible` (B, N, M)."""
    batch, nodes, fresh = visible.shape
    past = torch.arange(entries, device=starts.device) < starts  # (B, S)
    places = _list_places(starts, fresh)
    return past[:, None].repeat(1, nodes, 1).scatter_(2, places[:, None].expand(batch, nodes, fresh), visible)


def _list_places(starts: Tensor, count: int) -> Tensor:
    """(B, 1) -> (B, count): the entries from each row's start on."""
    return starts + torch.arange(count, device=starts.device)
