"""The prefixes that continuations share, and how often each occurs."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
TIE_SEED = 0  # breaks ties that REST's authors leave to chance


@dataclass(frozen=True)
class Prefixes:
    """n distinct prefixes, shallow ones first, then in the order of their ids, so that parents come before children.

    rows (m, D): the continuations they were counted in; depth (n,): index of their last token; row (n,): the first row that
    begins with them; count (n,): how many rows do.
    """

    rows: Ids
    depth: Ids
    row: Ids
    count: Ids

    @staticmethod
    def of(rows: Ids) -> "Prefixes":
        """Count prefixes in rows (m, D), sorted, -1 where a continuation has ended: a prefix is a run of rows."""
        new = np.ones(rows.shape, bool)
        np.logical_or.accumulate(rows[1:] != rows[:-1], axis=1, out=new[1:])
        depth, row = np.nonzero(new.T)
        ends = np.append(row[1:], len(rows))
        ends[ends == 0] = len(rows)  # the next run is the first of the next depth
        valid = rows[row, depth] >= 0
        return Prefixes(rows, depth[valid], row[valid], (ends - row)[valid])

    def __len__(self) -> int:
        return len(self.depth)

    @property
    def tokens(self) -> Ids:
        """(n,): the last token of each prefix."""
        return self.rows[self.row, self.depth]

    @property
    def parents(self) -> Ids:
        """(n,): index of each prefix's parent, -1 for prefixes of one token. All parents must be present."""
        place = self.depth * len(self.rows) + self.row
        return np.asarray(np.searchsorted(place, place - len(self.rows), side="right") - 1)

    def count_distinct_tokens(self) -> Ids:
        """Return (n,) the number of distinct tokens in each prefix."""
        paths = self.rows[self.row]
        paths[np.arange(paths.shape[1]) > self.depth[:, None]] = -1
        paths.sort(axis=1)
        changes = (paths[:, 1:] != paths[:, :-1]) & (paths[:, 1:] >= 0)
        return np.asarray(changes.sum(axis=1) + (paths[:, 0] >= 0))

    def select(self, places: Ids) -> "Prefixes":
        """Return the prefixes at these indices; ascending indices keep parents first."""
        return Prefixes(self.rows, self.depth[places], self.row[places], self.count[places])

    def keep_most_frequent(self, most: int) -> "Prefixes":
        """Return the most frequent prefixes; ties go to the shallower, then to smaller ids. Parents are always included."""
        if len(self) <= most:
            return self
        at_least = np.cumsum(np.bincount(self.count)[::-1])[::-1]  # prefixes with at least each count
        least = np.flatnonzero(at_least >= most)[-1]
        above, equal = np.flatnonzero(self.count > least), np.flatnonzero(self.count == least)
        return self.select(np.sort(np.concatenate([above, equal[: most - len(above)]])))

    def cut_by_cost(self, cost: int) -> "Prefixes":
        """Apply REST's own two cuts: to the `cost` most frequent, then to the cheapest whose total cost stays within `cost`.

        A prefix costs its distinct tokens. Ties are broken at random, as by the authors, but by a fixed seed. Parents that a cut
        dropped are restored, free of cost, with their children.
        """
        ties = np.random.default_rng(TIE_SEED).permutation(len(self))
        frequent = np.lexsort((ties, -self.count))[:cost]
        costs = self.select(frequent).count_distinct_tokens()
        cheapest = np.lexsort((ties[frequent], costs))
        kept = np.zeros(len(self), bool)
        kept[frequent[cheapest[np.cumsum(costs[cheapest]) <= cost]]] = True
        parents = self.parents
        for _ in range(self.rows.shape[1]):
            above = parents[kept]
            kept[above[above >= 0]] = True
        return self.select(np.flatnonzero(kept)[:cost])
