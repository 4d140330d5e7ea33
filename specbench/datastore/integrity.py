"""Check that a store is what its store.json says: the ids by their sha256, each suffix array by one pass over it."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

BLOCK = 1 << 24  # entries looked at together


def hash_ids(chunks: Sequence[NDArray[np.unsignedinteger]]) -> str:
    """Return the sha256 of all ids as a store holds them."""
    digest = hashlib.sha256()
    for ids in chunks:
        for start in range(0, len(ids), BLOCK):
            digest.update(ids[start : start + BLOCK].tobytes())
    return digest.hexdigest()


def find_largest_id(chunks: Sequence[NDArray[np.unsignedinteger]]) -> int:
    return max(int(ids[start : start + BLOCK].max()) for ids in chunks for start in range(0, len(ids), BLOCK))


def is_suffix_array(ids: NDArray[np.unsignedinteger], suffixes: NDArray[np.int32]) -> bool:
    """Return whether the suffixes of ids (n,) are all there and in order, in linear time.

    Neighbours a, b in the array are in order if a's first id is smaller, or if it is the same and the suffix a + 1 sorts before
    the suffix b + 1. The empty suffix sorts before all. Holds four bytes per id.
    """
    ranks = np.full(len(ids) + 1, -1, np.int32)
    for start in range(0, len(ids), BLOCK):
        block = suffixes[start : start + BLOCK]
        if int(block.min()) < 0 or int(block.max()) >= len(ids):
            return False
        ranks[block] = np.arange(start, start + len(block), dtype=np.int32)
    if len(ids) > 0 and int(ranks[:-1].min()) < 0:
        return False  # one of them is missing, so another occurs twice
    ranks[-1] = -1
    return all(_is_sorted(ids, suffixes[start : start + BLOCK + 1], ranks) for start in range(0, len(ids), BLOCK))


def _is_sorted(ids: NDArray[np.unsignedinteger], suffixes: NDArray[np.int32], ranks: NDArray[np.int32]) -> bool:
    above, below = suffixes[:-1], suffixes[1:]
    first, second = ids[above], ids[below]
    return bool(((first < second) | ((first == second) & (ranks[above + 1] < ranks[below + 1]))).all())
