"""Whether two samples of texts come from one distribution: a permutation test of the distance of their n-gram counts.

The statistic is the maximum mean discrepancy (Gretton et al. 2012, section 2.2) with a linear kernel of counts of single tokens
and pairs, summed over prompts; labels are permuted within each prompt, so that prompts may differ as they like.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

PER_LEVEL = 10  # permutations are this many times as many as the least that could show anything at the level
Array = np.ndarray


@dataclass(frozen=True)
class Permuted:
    """samples: texts of each side, over all prompts; distance: the statistic over its mean under permutation."""

    prompts: int
    samples: int
    distance: float
    p_value: float
    level: float


def permutation_test(
    ours: Sequence[Sequence[list[int]]], theirs: Sequence[Sequence[list[int]]], level: float, seed: int = 0
) -> Permuted:
    """Texts by prompt of each side, as many on both. p_value: exact under equality; it can be a tenth of the level."""
    rng = np.random.default_rng(seed)
    permutations = ceil(PER_LEVEL / level)
    found = np.zeros(1 + permutations)
    for one, other in zip(ours, theirs, strict=True):
        likeness = _likeness([*one, *other])
        signs = np.repeat([1.0, -1.0], [len(one), len(other)])
        rows = np.vstack([signs, rng.permuted(np.tile(signs, (permutations, 1)), axis=1)])
        found += np.einsum("ij,jk,ik->i", rows, likeness, rows, optimize=True) / len(one) ** 2
    as_far = int((found[1:] >= found[0] * (1 - 1e-9)).sum())
    samples = sum(len(one) for one in ours)
    return Permuted(len(ours), samples, float(found[0] / found[1:].mean()), (1 + as_far) / (1 + permutations), level)


def _likeness(texts: Sequence[list[int]]) -> Array:
    """(n, n): the inner products of the texts' n-gram counts, each text's counts scaled to length one."""
    grams = [[*((token,) for token in text), *zip(text, text[1:], strict=False)] for text in texts]
    columns = {gram: at for at, gram in enumerate(dict.fromkeys(gram for one in grams for gram in one))}
    counts = np.zeros((len(texts), len(columns)))
    for row, one in enumerate(grams):
        for gram in one:
            counts[row, columns[gram]] += 1
    counts /= np.linalg.norm(counts, axis=1, keepdims=True)
    product: Array = counts @ counts.T
    return product
