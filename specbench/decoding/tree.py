"""The draft tree: candidate continuations of one sequence, rooted at the last committed token."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from specbench.errors import InputError

Pick = tuple[Tensor, Tensor | None]  # tokens, and the probabilities they were drawn from: None where nothing was drawn


@lru_cache(maxsize=512)
def _build_chain_parents(nodes: int, device: torch.device) -> Tensor:
    return torch.arange(-1, nodes - 1, device=device)


@dataclass(frozen=True)
class DraftTree:
    """Node 0 is the root, whose KV entry does not exist yet; every parent stands before its children.

    tokens (N,) int64; parents (N,) int64, parents[0] = -1; probs (P, V) or None: what the tokens were drawn from, one row per
    node that has children, siblings in the order drawn and without replacement; None for a deterministic draft; scratch (N,)
    bool or None: nodes computed but never accepted.
    """

    tokens: Tensor
    parents: Tensor
    probs: Tensor | None = None
    scratch: Tensor | None = None
    linear: bool = False  # a chain: every node's parent is the node before it
    shape: "TreeShape | None" = None  # the static tree that it is

    @staticmethod
    def chain(tokens: Tensor, probs: Tensor | None = None) -> "DraftTree":
        """A tree without branches. tokens (N,) int64, the root first."""
        return DraftTree(tokens, _build_chain_parents(len(tokens), tokens.device), probs, linear=True)

    @staticmethod
    def from_picks(root: Tensor, picks: Sequence[Pick]) -> "DraftTree":
        """A chain of tokens picked one behind the other. root (1,)."""
        probs = [weights for _, weights in picks if weights is not None]
        return DraftTree.chain(torch.cat([root, *(token for token, _ in picks)]), torch.cat(probs) if probs else None)

    def __len__(self) -> int:
        return self.tokens.shape[0]

    @cached_property
    def drafted(self) -> int:
        """Nodes offered for acceptance: the root and scratch nodes do not count."""
        if self.shape is not None:
            return self.shape.drafted
        return len(self) - 1 - (0 if self.scratch is None else int(self.scratch.sum()))

    @cached_property
    def children(self) -> list[list[int]]:
        """Of each node the children that may be accepted, in their order; on the host."""
        if self.shape is not None:
            return self.shape.children
        return _list_children(self.parents, self.scratch)

    @cached_property
    def ancestors(self) -> Tensor:
        """(N, N) bool: row i is true at i and at every node on the way from i to the root."""
        if self.shape is not None:
            return self.shape.ancestors
        if self.linear:
            return torch.ones(len(self), len(self), dtype=torch.bool, device=self.tokens.device).tril()
        return _build_ancestor_mask(self.parents)

    @cached_property
    def depths(self) -> Tensor:
        """(N,) int64: steps from the root."""
        if self.shape is not None:
            return self.shape.depths
        return self.parents + 1 if self.linear else self.ancestors.sum(dim=1) - 1

    @cached_property
    def depth(self) -> int:
        """Depth of the deepest node that can be accepted."""
        if self.shape is not None:
            return self.shape.depth
        if self.linear:
            return len(self) - 1
        offered = self.depths if self.scratch is None else self.depths[~self.scratch]
        return int(offered.max())


def _build_ancestor_mask(parents: Tensor) -> Tensor:
    """(N, N) bool from parents (N,), one round per level."""
    nodes = torch.arange(len(parents), device=parents.device)
    above, at = parents.clamp(min=0), nodes
    mask = torch.eye(len(parents), dtype=torch.bool, device=parents.device)
    while bool(at.any()):
        at = above[at]
        mask[nodes, at] = True
    return mask


def _list_children(parents: Tensor, scratch: Tensor | None) -> list[list[int]]:
    under: list[list[int]] = [[] for _ in parents]
    barred = [False] * len(parents) if scratch is None else scratch.tolist()
    for node, parent in enumerate(parents.tolist()):
        if node and not barred[node]:
            under[parent].append(node)
    return under


class Level(NamedTuple):
    """The n nodes of one depth of a static tree, m of which have children of their own.

    rows (n,): which of the expanded nodes above is the parent; ranks (n,): which of its best tokens; places (n,): which of the
    parent's children, where tokens are drawn one after the other and none is left out; expanded (m,): which of
    these nodes have children; visible (m, M) bool: which of all expanded nodes down to here each of them sees.
    """

    rows: Tensor
    ranks: Tensor
    places: Tensor
    expanded: Tensor
    visible: Tensor


class TreeShape:
    """A static draft tree: the same parents in every step, so that all that follows from them is made once.

    paths: one list of ranks per node but the root; the path [0, 2] is the third best child of the best child of the root. Every
    path's beginnings are paths as well. Nodes stand in order of depth, then of ranks. heads: how many there are, where each depth
    needs one of its own. scratch: the paths whose nodes are never accepted. Raises InputError.
    """

    def __init__(
        self,
        paths: Sequence[Sequence[int]],
        device: torch.device | str = "cpu",
        heads: int | None = None,
        scratch: Collection[tuple[int, ...]] = (),
    ) -> None:
        self.paths = sorted((tuple(path) for path in paths), key=lambda path: (len(path), path))
        self.device = torch.device(device)
        _check_paths(self.paths)
        node = {path: at for at, path in enumerate([(), *self.paths])}
        self.parents = torch.tensor([-1] + [node[path[:-1]] for path in self.paths], device=device)
        self.ranks = torch.tensor([0] + [path[-1] for path in self.paths], device=device)  # (N,) of a node among its siblings
        self.ancestors = _build_ancestor_mask(self.parents)
        self.depths = self.ancestors.sum(dim=1) - 1
        self.scratch_paths = frozenset(scratch)
        self.scratch = torch.tensor([False] + [path in scratch for path in self.paths], device=device) if scratch else None
        self.drafted = len(self.paths) - len(scratch)
        self.depth = max((len(path) for path in self.paths if path not in scratch), default=0)
        if heads is not None and self.depth > heads:
            raise InputError(f"a tree of depth {self.depth} needs as many heads; there are {heads}")
        self.width = 1 + int(self.ranks.max())  # children that a node needs to choose from
        self._cuts: dict[int, TreeShape] = {}

    def __len__(self) -> int:
        return len(self.parents)

    def cut(self, depth: int) -> "TreeShape":
        """The same tree without what lies deeper."""
        if depth >= self.depth:
            return self
        if depth not in self._cuts:
            kept = [path for path in self.paths if len(path) <= depth]
            self._cuts[depth] = TreeShape(kept, self.device, scratch=[path for path in kept if path in self.scratch_paths])
        return self._cuts[depth]

    @cached_property
    def children(self) -> list[list[int]]:
        return _list_children(self.parents, self.scratch)

    @cached_property
    def levels(self) -> "list[Level]":
        """Depth by depth, what a drafter needs that drafts each node's children from the node itself."""
        made: list[Level] = []
        above: list[tuple[int, ...]] = [()]  # the expanded nodes of the level above
        fed = torch.zeros(0, dtype=torch.long, device=self.device)
        for depth in range(1, self.depth + 1):
            nodes = [path for path in self.paths if len(path) == depth]
            parents = {path[:-1] for path in self.paths if len(path) == depth + 1}
            expanded = [at for at, path in enumerate(nodes) if path in parents]
            first = 1 + self.paths.index(nodes[0])
            fed = torch.cat([fed, torch.tensor([first + at for at in expanded], dtype=torch.long, device=self.device)])
            made.append(
                Level(
                    rows=torch.tensor([above.index(path[:-1]) for path in nodes], device=self.device),
                    ranks=torch.tensor([path[-1] for path in nodes], device=self.device),
                    places=torch.tensor([_find_place(path, nodes) for path in nodes], device=self.device),
                    expanded=torch.tensor(expanded, dtype=torch.long, device=self.device),
                    visible=self.ancestors[fed[len(fed) - len(expanded) :]][:, fed],
                )
            )
            above = [nodes[at] for at in expanded]
        return made

    def build_tree(self, tokens: Tensor, probs: Tensor | None = None) -> DraftTree:
        """tokens (N,) int64, the root first; probs as in DraftTree."""
        return DraftTree(tokens, self.parents, probs, scratch=self.scratch, shape=self)


def _find_place(path: tuple[int, ...], nodes: list[tuple[int, ...]]) -> int:
    """Which child of its parent it is."""
    return sum(other[:-1] == path[:-1] and other < path for other in nodes)


def _check_paths(paths: list[tuple[int, ...]]) -> None:
    there = {(), *paths}
    if len(there) <= len(paths):
        twice = next(path for path in paths if path == () or paths.count(path) > 1)
        raise InputError(f"tree: the path {list(twice)} is empty or stands there twice")
    for path in paths:
        if path[:-1] not in there:
            raise InputError(f"tree: the path {list(path)} has no parent {list(path[:-1])}")
        if path[-1] < 0:
            raise InputError(f"tree: the path {list(path)} has a negative rank")
