"""The draft tree: candidate continuations of one sequence, rooted at the last committed token."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from specbench.errors import InputError
from specbench.machine.rehearsal import is_rehearsing

Pick = tuple[Tensor, Tensor | None]  # tokens, and the probabilities they were drawn from: None if chosen greedily


def _build_chain_parents(nodes: int, device: torch.device) -> Tensor:
    return torch.arange(-1, nodes - 1, device=device)


_get_chain_parents = lru_cache(maxsize=512)(_build_chain_parents)


@dataclass(frozen=True)
class DraftTree:
    """Candidate continuations of one sequence as N nodes; the target's forward computes one row per node.

    Node 0 is the root: the last committed token, whose KV entry does not exist yet. Every parent precedes its children.
    """

    tokens: Tensor  # (N,) int64
    parents: Tensor  # (N,) int64, parents[0] = -1
    probs: Tensor | None = None  # (P, V) float: q of every node with children; siblings are drawn in order, without replacement
    scratch: Tensor | None = None  # (N,) bool: nodes that are computed but never accepted
    linear: bool = False  # a chain: every node's parent is the node before it
    shape: "TreeShape | Outline | None" = None  # the static tree that it fills, or what its builder knows about it
    deepest: int | None = None  # no node is deeper, if its builder knows that, so that the device need not be asked

    @staticmethod
    def chain(tokens: Tensor, probs: Tensor | None = None) -> "DraftTree":
        """Build a tree without branches. tokens (N,) int64, the root first."""
        get_parents = _build_chain_parents if is_rehearsing() else _get_chain_parents  # nothing of a rehearsal is kept
        return DraftTree(tokens, get_parents(len(tokens), tokens.device), probs, linear=True)

    @staticmethod
    def from_picks(root: Tensor, picks: Sequence[Pick]) -> "DraftTree":
        """Build a chain of tokens picked one after another. root (1,)."""
        probs = [weights for _, weights in picks if weights is not None]
        return DraftTree.chain(torch.cat([root, *(token for token, _ in picks)]), torch.cat(probs) if probs else None)

    @staticmethod
    def from_lists(tokens: Sequence[int], parents: Sequence[int]) -> "DraftTree":
        """Build a tree on the host. tokens, parents: N each, the root first, its parent -1."""
        above = np.eye(len(parents), dtype=np.int64)  # row i: 1 at node i and at every node above it
        for node, parent in enumerate(parents[1:], start=1):
            above[node] |= above[parent]
        depths = above.sum(axis=1) - 1
        rows = torch.from_numpy(np.vstack([tokens, parents, depths, above]))
        return _outline(rows, int(depths.max()), _list_children(parents))

    def __len__(self) -> int:
        return self.tokens.shape[0]

    @cached_property
    def drafted(self) -> int:
        """Number of draft nodes: all but the root and scratch nodes."""
        if self.shape is not None:
            return self.shape.drafted
        return len(self) - 1 - (0 if self.scratch is None else int(self.scratch.sum()))

    @cached_property
    def children(self) -> list[list[int]]:
        """Per node, its children that may be accepted, in order; on the host."""
        if self.shape is not None:
            return self.shape.children
        if self.linear:
            return [*([node] for node in range(1, len(self))), []]
        return _list_children(self.parents.tolist(), self.scratch)

    @cached_property
    def ancestors(self) -> Tensor:
        """(N, N) bool: row i is true at i and at every node on the path from the root to i."""
        if self.shape is not None:
            return self.shape.ancestors
        if self.linear:
            return torch.ones(len(self), len(self), dtype=torch.bool, device=self.tokens.device).tril()
        return _build_ancestor_mask(self.parents, self.deepest)

    @cached_property
    def depths(self) -> Tensor:
        """(N,) int64: distance from the root."""
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
        return int(self.find_depth())

    def find_depth(self) -> Tensor:
        """() int64: the depth, on the device."""
        return (self.depths if self.scratch is None else self.depths.masked_fill(self.scratch, 0)).max()

    @property
    def knows_depth(self) -> bool:
        """Whether the host knows how deep it is."""
        return self.shape is not None or self.linear

    def pack(self) -> Tensor:
        """Return the numbers that the device needs of a tree that was built on the host, flat int64."""
        if isinstance(self.shape, Outline):
            return self.shape.rows.flatten()
        return self.tokens if self.linear or self.shape is not None else torch.cat([self.tokens, self.parents])

    def unpack(self, numbers: Tensor) -> "DraftTree":
        """Return the same tree on the device of these numbers, which were packed."""
        if isinstance(self.shape, Outline):
            return _outline(numbers.view(self.shape.rows.shape), self.shape.depth, self.shape.children)
        probs, scratch = (None if one is None else one.to(numbers.device) for one in (self.probs, self.scratch))
        if self.linear:
            return DraftTree.chain(numbers, probs)
        if self.shape is not None:
            return self.shape.build_tree(numbers, probs)
        tokens, parents = numbers.view(2, -1)
        return DraftTree(tokens, parents, probs, scratch, deepest=self.deepest)

    @property
    def depth_limit(self) -> int:
        """A depth that no node exceeds; the device is not asked if the tree's builder knew one."""
        return self.depth if self.deepest is None else self.deepest


@dataclass(frozen=True)
class Outline:
    """What follows from a tree's parents, if the host knows them; fields as in DraftTree.

    rows (3 + N, N) int64: tokens, parents, depths, ancestors.
    """

    rows: Tensor
    ancestors: Tensor  # (N, N) bool
    depths: Tensor  # (N,) int64
    depth: int
    drafted: int
    children: list[list[int]]


def _outline(rows: Tensor, depth: int, children: list[list[int]]) -> DraftTree:
    """Return a tree whose parents the host knows. rows: as in Outline."""
    return DraftTree(rows[0], rows[1], shape=Outline(rows, rows[3:].bool(), rows[2], depth, len(children) - 1, children))


def _build_ancestor_mask(parents: Tensor, deepest: int | None = None) -> Tensor:
    """(N, N) bool from parents (N,), one round per level: as many as `deepest`, or until no node is left below another."""
    nodes = ancestors = torch.arange(len(parents), device=parents.device)
    above = parents.clamp(min=0)
    mask = torch.eye(len(parents), dtype=torch.bool, device=parents.device)
    for _ in range(len(parents) if deepest is None else deepest):
        if deepest is None and not bool(ancestors.any()):
            break
        ancestors = above[ancestors]
        mask[nodes, ancestors] = True
    return mask


def _list_children(parents: Sequence[int], scratch: Tensor | None = None) -> list[list[int]]:
    """scratch: (N,) bool."""
    excluded = set() if scratch is None else {node for node, out in enumerate(scratch.tolist()) if out}
    children: list[list[int]] = [[] for _ in parents]
    for node, parent in enumerate(parents):
        if node and node not in excluded:
            children[parent].append(node)
    return children


class Level(NamedTuple):
    """The n nodes of one depth of a static tree; m of them are expanded, that is, have children."""

    rows: Tensor  # (n,) index of the parent among the expanded nodes of the level above
    ranks: Tensor  # (n,) rank of the token among the parent's best tokens
    places: Tensor  # (n,) index among the parent's children, for tokens drawn one after another
    expanded: Tensor  # (m,) indices of the expanded nodes
    visible: Tensor  # (m, M) bool: which of all expanded nodes down to this level each of them sees


class TreeShape:
    """A static draft tree: the parents are the same in every step, so everything derived from them is computed once.

    paths: one list of ranks per node except the root; [0, 2] is the third-best child of the root's best child. Every prefix of
    a path must be a path too. Nodes are ordered by depth, then by ranks. heads: number of draft heads, if each depth needs its
    own. scratch: paths of nodes that are never accepted. Raises InputError.
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
        node = {path: i for i, path in enumerate([(), *self.paths])}
        self.parents = torch.tensor([-1] + [node[path[:-1]] for path in self.paths], device=device)
        self.ranks = torch.tensor([0] + [path[-1] for path in self.paths], device=device)  # (N,) of a node among its siblings
        self.ancestors = _build_ancestor_mask(self.parents)
        self.depths = self.ancestors.sum(dim=1) - 1
        self.scratch_paths = frozenset(scratch)
        self.scratch = torch.tensor([False] + [path in scratch for path in self.paths], device=device) if scratch else None
        self.drafted = len(self.paths) - len(scratch)
        self.depth = max((len(path) for path in self.paths if path not in scratch), default=0)
        if heads is not None and self.depth > heads:
            raise InputError(f"a tree of depth {self.depth} needs {self.depth} heads; there are {heads}")
        self.width = 1 + int(self.ranks.max())  # best tokens needed per expanded node
        self._cuts: dict[int, TreeShape] = {}

    def __len__(self) -> int:
        return len(self.parents)

    def cut(self, depth: int) -> "TreeShape":
        """Return the tree without the nodes deeper than `depth`."""
        if depth >= self.depth:
            return self
        if depth not in self._cuts:
            kept = [path for path in self.paths if len(path) <= depth]
            self._cuts[depth] = TreeShape(kept, self.device, scratch=[path for path in kept if path in self.scratch_paths])
        return self._cuts[depth]

    @cached_property
    def children(self) -> list[list[int]]:
        return _list_children(self.parents.tolist(), self.scratch)

    @cached_property
    def levels(self) -> "list[Level]":
        """The tree level by level, for drafters that draft each node's children from the node itself."""
        levels: list[Level] = []
        above: list[tuple[int, ...]] = [()]  # the expanded nodes of the level above
        fed: list[int] = []  # all expanded nodes so far
        for depth in range(1, self.depth + 1):
            nodes = [path for path in self.paths if len(path) == depth]
            parents = {path[:-1] for path in self.paths if len(path) == depth + 1}
            expanded = [i for i, path in enumerate(nodes) if path in parents]
            first = 1 + self.paths.index(nodes[0])
            fed += [first + i for i in expanded]
            levels.append(
                Level(
                    rows=torch.tensor([above.index(path[:-1]) for path in nodes], device=self.device),
                    ranks=torch.tensor([path[-1] for path in nodes], device=self.device),
                    places=torch.tensor([_find_place(path, nodes) for path in nodes], device=self.device),
                    expanded=torch.tensor(expanded, dtype=torch.long, device=self.device),
                    visible=self.ancestors[fed[len(fed) - len(expanded) :]][:, fed],
                )
            )
            above = [nodes[i] for i in expanded]
        return levels

    @cached_property
    def inner(self) -> int:
        """Number of nodes with children."""
        return len({path[:-1] for path in self.paths})

    def build_tree(self, tokens: Tensor, probs: Tensor | None = None) -> DraftTree:
        """Fill the tree with tokens (N,) int64, the root first; probs as in DraftTree."""
        return DraftTree(tokens, self.parents, probs, scratch=self.scratch, shape=self)


def _find_place(path: tuple[int, ...], nodes: list[tuple[int, ...]]) -> int:
    """Return the index of a node among its parent's children."""
    return sum(other[:-1] == path[:-1] and other < path for other in nodes)


def _check_paths(paths: list[tuple[int, ...]]) -> None:
    known = {(), *paths}
    if len(known) <= len(paths):
        wrong = next(path for path in paths if path == () or paths.count(path) > 1)
        raise InputError(f"tree: the path {list(wrong)} is empty or given twice")
    for path in paths:
        if path[:-1] not in known:
            raise InputError(f"tree: the path {list(path)} has no parent {list(path[:-1])}")
        if path[-1] < 0:
            raise InputError(f"tree: the path {list(path)} has a negative rank")
