"""What occurrences have in common: the prefixes of their continuations, and how often each of them comes."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
LOTS = 0  # the seed of what decides where REST's authors leave it to chance


@dataclass(frozen=True)
class Prefixes:
    """n distinct prefixes, shallow ones first, then in the order of their ids; so every prefix stands behind its own beginnings.

    rows (m, D): the continuations they were counted in; depth (n,): index of their last token; row (n,): the first row that
    begins so; count (n,): how many rows do.
    """

    rows: Ids
    depth: Ids
    row: Ids
    count: Ids

    @staticmethod
    def of(rows: Ids) -> "Prefixes":
        """rows (m, D) in lexicographic order, -1 where a continuation has ended: prefixes are runs of rows."""
        new = np.ones(rows.shape, bool)
        np.logical_or.accumulate(rows[1:] != rows[:-1], axis=1, out=new[1:])
        depth, row = np.nonzero(new.T)
        ends = np.append(row[1:], len(rows))
        ends[ends == 0] = len(rows)  # the next run is the first of the next depth
        there = rows[row, depth] >= 0
        return Prefixes(rows, depth[there], row[there], (ends - row)[there])

    def __len__(self) -> int:
        return len(self.depth)

    @property
    def tokens(self) -> Ids:
        """(n,) the last token of each."""
        return self.rows[self.row, self.depth]

    @property
    def parents(self) -> Ids:
        """(n,) the place of each prefix's beginning, -1 for those of one token. All beginnings must be among them."""
        place = self.depth * len(self.rows) + self.row
        return np.searchsorted(place, place - len(self.rows), side="right") - 1

    def count_distinct_tokens(self) -> Ids:
        """(n,) how many different tokens each of them has."""
        paths = self.rows[self.row]
        paths[np.arange(paths.shape[1]) > self.depth[:, None]] = -1
        paths.sort(axis=1)
        changes = (paths[:, 1:] != paths[:, :-1]) & (paths[:, 1:] >= 0)
        return changes.sum(axis=1) + (paths[:, 0] >= 0)

    def select(self, places: Ids) -> "Prefixes":
        """Those at these places; in ascending order where they are to be drafted."""
        return Prefixes(self.rows, self.depth[places], self.row[places], self.count[places])

    def keep_most_frequent(self, most: int) -> "Prefixes":
        """Those with the highest counts; of equal counts the shallower, then the smaller ids. Beginnings always come along."""
        if len(self) <= most:
            return self
        at_least = np.cumsum(np.bincount(self.count)[::-1])[::-1]  # prefixes of each count or a higher one
        least = np.flatnonzero(at_least >= most)[-1]
        above, equal = np.flatnonzero(self.count > least), np.flatnonzero(self.count == least)
        return self.select(np.sort(np.concatenate([above, equal[: most - len(above)]])))

    def cut_by_cost(self, cost: int) -> "Prefixes":
        """REST's own two cuts: to the `cost` most frequent; of these without the dearest ones, until all together cost no more.

        A prefix costs its distinct tokens. Equal ones are told apart by lot, as theirs, but by the same lots every time; a
        beginning that a cut dropped comes back with what lies behind it, free of cost.
        """
        lots = np.random.default_rng(LOTS).permutation(len(self))
        frequent = np.lexsort((lots, -self.count))[:cost]
        costs = self.select(frequent).count_distinct_tokens()
        cheapest = np.lexsort((lots[frequent], costs))
        kept = np.zeros(len(self), bool)
        kept[frequent[cheapest[np.cumsum(costs[cheapest]) <= cost]]] = True
        parents = self.parents
        for _ in range(self.rows.shape[1]):
            above = parents[kept]
            kept[above[above >= 0]] = True
        return self.select(np.flatnonzero(kept)[:cost])
