"""Whether two samples of texts come from one distribution: a permutation test of the distance of their n-gram counts.

The statistic is the maximum mean discrepancy (Gretton et al. 2012, section 2.2) with a linear kernel of counts of single tokens
and pairs, summed over prompts; labels are permuted within each prompt, so that prompts may differ as they like.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, comb, prod

import numpy as np

from specbench.certify.enumeration import AGAIN

PER_LEVEL = 10  # permutations are this many times as many as the least that could show anything at the level
AT_ONCE = 4_096
ROUNDING = 1e-9  # of a distance, which is 0 where all texts are one
Array = np.ndarray
Texts = Sequence[Sequence[list[int]]]  # by prompt


@dataclass(frozen=True)
class Permuted:
    """samples: texts of each side, over all prompts; distance: the statistic over its mean under permutation."""

    prompts: int
    samples: int
    distance: float
    p_value: float
    level: float


def examined(drawn: Callable[[int], tuple[Texts, Texts]], level: float) -> list[Permuted]:
    """The test of the texts of both sides, and that of AGAIN times as many drawn afresh where it fails: the last one counts.

    drawn: so many times as many texts as are wanted at first.
    """
    found = [permutation_test(*drawn(1), level)]
    if found[0].p_value < level:
        found.append(permutation_test(*drawn(AGAIN), level))
    return found


def can_show(samples: Sequence[int], level: float) -> bool:
    """Whether there are ways enough to label so many texts of each side, by prompt, for a p-value of a tenth of the level."""
    return prod(comb(2 * count, count) for count in samples) >= 2 * PER_LEVEL / level  # twice: both sides may be exchanged


def permutation_test(ours: Texts, theirs: Texts, level: float, seed: int = 0) -> Permuted:
    """As many texts on both sides. p_value: exact under equality. Raises ValueError where they can show nothing."""
    if not can_show([len(one) for one in ours], level):
        raise ValueError(
            f"{sum(map(len, ours))} texts of {len(ours)} prompts show nothing at the level {level:.1g}: more samples"
        )
    alike = [_likeness([*one, *other]) for one, other in zip(ours, theirs, strict=True)]
    signs = [np.repeat([1.0, -1.0], [len(one), len(other)]) for one, other in zip(ours, theirs, strict=True)]
    rng, permutations = np.random.default_rng(seed), ceil(PER_LEVEL / level)
    found = float(_distances(alike, [row[None] for row in signs])[0])
    as_far, total = 0, 0.0
    for start in range(0, permutations, AT_ONCE):
        count = min(AT_ONCE, permutations - start)
        permuted = _distances(alike, [rng.permuted(np.tile(row, (count, 1)), axis=1) for row in signs])
        as_far, total = as_far + int((permuted >= found - ROUNDING).sum()), total + float(permuted.sum())
    samples = sum(len(one) for one in ours)
    distance = found * permutations / total if total > ROUNDING else 1.0
    return Permuted(len(ours), samples, distance, (1 + as_far) / (1 + permutations), level)


def _distances(alike: Sequence[Array], signs: Sequence[Array]) -> Array:
    """(m,): the statistic with m ways to label the texts of each prompt; signs (m, n) by prompt, 1 for ours and -1 for theirs."""
    found: Array = sum(
        np.einsum("ij,ij->i", rows @ one, rows) / rows.shape[1] ** 2 for one, rows in zip(alike, signs, strict=True)
    )
    return found


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
