"""Test whether sampled text has the right distribution, where that can be enumerated: G-tests on a miniature target.

Prefill gives the first token; a method writes from the second on. The exact probabilities of the first one, two and three of
these tokens, and of the second and the third alone, come from transformers' own attention. A method's frequencies come from
many texts after one prompt.
"""

from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import optimize, stats
from torch import Tensor

from specbench.certify.miniature import TOKENS, VOCABULARY
from specbench.decoding.drafter import Drafter
from specbench.decoding.language_model import LanguageModel
from specbench.decoding.loop import generate
from specbench.decoding.sampling import Sampling, probabilities

LONGEST = 3  # tokens of the longest tested prefix
WINDOWS = ((0,), (0, 1), (0, 1, 2), (1,), (2,))  # of the method's tokens: one test per window
WRITTEN = (4, 6)  # tokens of a text: half of the texts end with the tested tokens, drafts and the token after them included
BATCH = 128
LEAST_EXPECTED = 20.0  # draws in a cell; rarer ones are pooled: with 5, one G-test in 14 has p < 0.05
POWER = 0.99
IMPOSSIBLE = 1e9  # the statistic if something of probability 0 occurs
AGAIN = 4  # this many times as many new texts if the first tests fail; then only the second tests count
STOP = 3  # the token that must not come, if answers have a least length
CUT_SHORT = [VOCABULARY - 1] * LONGEST  # after a text that ended early: tokens that are never written
PROMPT = (2, 5, 3, 4, 2, 5, 3, 4, 6, 2, 5, 3, 4, 2, 5)  # repeats itself, so that lookup methods find something

Array = NDArray[Any]


@dataclass(frozen=True)
class GTest:
    """tokens: indices of the method's tested tokens, from 0; cells: rare continuations share one.

    finds: total variation distance between cells that is detected with a power of 0.99; level: a p-value below it is a finding.
    """

    tokens: tuple[int, ...]
    draws: int
    cells: int
    statistic: float
    p_value: float
    finds: float
    level: float


@torch.inference_mode()
def exact(target: LanguageModel, sampling: Sampling) -> Array:
    """Return (TOKENS, TOKENS, TOKENS): the probability of every continuation after the first token."""
    texts = torch.tensor(list(product(range(TOKENS), repeat=LONGEST)))
    prompt = torch.tensor(PROMPT).expand(len(texts), -1)
    with target.use_original_attention() as model:
        logits: Tensor = model(torch.cat([prompt, texts], dim=1), use_cache=False).logits[:, -1 - LONGEST :]
    if sampling.min_new_tokens:
        logits[..., STOP] = -torch.inf
    p = probabilities(logits, sampling).double()
    assert float(p[..., TOKENS:].sum()) == 0
    p = p[..., :TOKENS].reshape(*[TOKENS] * LONGEST, LONGEST + 1, TOKENS)
    joint = p[0, 0, 0, 0]  # of the first token
    for length in range(1, LONGEST + 1):
        prefix = (slice(None),) * length + (0,) * (LONGEST - length)
        joint = joint[..., None] * p[(*prefix, length)]
    continuations: Array = joint.sum(dim=0).numpy()
    return np.asarray(continuations / continuations.sum())


def draw_tokens(target: LanguageModel, drafter: Drafter, sampling: Sampling, draws: int) -> Array:
    """Return (draws, 3) tokens after the first one, reproducible by the seed of `sampling`.

    No text ends early. If answers have a least length, STOP is forbidden throughout.
    """
    drafter.bind(target)
    drafter.reset()
    prompt = torch.tensor(PROMPT)
    tokens: list[list[int]] = []
    stops, least = ((STOP,), max(WRITTEN)) if sampling.min_new_tokens else ((), 0)
    sampling = replace(sampling, stop_token_ids=stops, min_new_tokens=least)
    for batch, start in enumerate(range(0, draws, BATCH)):
        seed = sampling.seed * 1_000_003 + batch
        batch_sampling = replace(sampling, max_new_tokens=WRITTEN[batch % 2], seed=seed)
        outs = generate(target, drafter, [prompt] * min(BATCH, draws - start), batch_sampling)
        tokens += [(out.output_ids[1:] + CUT_SHORT)[:LONGEST] for out in outs]
    return np.array(tokens)


def run_tests(target: LanguageModel, drafter: Drafter, sampling: Sampling, draws: int, level: float) -> list[list[GTest]]:
    """Return the tests of `draws` texts or, if one fails, those of AGAIN times as many new texts."""
    target_probs = exact(target, sampling)
    results = [run_g_tests(draw_tokens(target, drafter, sampling, draws), target_probs, level)]
    if any(test.p_value < level for test in results[0]):
        reseeded = replace(sampling, seed=sampling.seed + 1)
        results.append(run_g_tests(draw_tokens(target, drafter, reseeded, AGAIN * draws), target_probs, level))
    return results


def can_show(target: LanguageModel, sampling: Sampling, draws: int) -> bool:
    """Return whether any test of `draws` texts has at least two cells, and so can fail."""
    target_probs = exact(target, sampling)
    counts = [_marginalise(target_probs, window) * draws for window in WINDOWS]
    return any(len(_pool_cells(expected, expected)[1]) > 1 for expected in counts)


def run_g_tests(tokens: Array, target_probs: Array, level: float) -> list[GTest]:
    """Test tokens (draws, 3) in every window with two cells or more, each at `level`. Raises ValueError if there is none."""
    tests = [test for window in WINDOWS if (test := _run_g_test(tokens, target_probs, window, level))]
    if not tests:
        raise ValueError(f"{len(tokens)} texts, all nearly certain, show nothing: expected more draws or a higher temperature")
    return tests


def _run_g_test(tokens: Array, target_probs: Array, window: tuple[int, ...], level: float) -> GTest | None:
    draws = len(tokens)
    expected_probs = _marginalise(target_probs, window)
    counted = np.zeros([VOCABULARY] * len(window))
    np.add.at(counted, tuple(tokens[:, window].T), 1)
    possible = counted[tuple([slice(TOKENS)] * len(window))][expected_probs > 0]
    if counted.sum() > possible.sum():
        return GTest(window, draws, expected_probs.size, IMPOSSIBLE, 0.0, 0.0, level)
    observed, expected = _pool_cells(possible, expected_probs[expected_probs > 0] * draws)
    if len(expected) < 2:
        return None
    statistic, p_value = stats.power_divergence(observed, expected, lambda_="log-likelihood")
    finds = compute_detectable_distance(len(expected), draws, level)
    return GTest(window, draws, len(expected), float(statistic), float(p_value), finds, level)


def _marginalise(target_probs: Array, window: tuple[int, ...]) -> Array:
    """Return the joint probabilities of the window's tokens."""
    return np.asarray(target_probs.sum(axis=tuple(index for index in range(LONGEST) if index not in window)))


def _pool_cells(observed: Array, expected: Array) -> tuple[Array, Array]:
    """Merge cells whose expected count is below LEAST_EXPECTED with neighbours; a small remainder joins the smallest other."""
    rare = expected < LEAST_EXPECTED
    if rare.any() and expected[rare].sum() < LEAST_EXPECTED and not rare.all():
        rare[np.where(rare, np.inf, expected).argmin()] = True
    groups = (np.cumsum(expected[rare]) // (2 * LEAST_EXPECTED)).astype(int)
    groups = np.minimum(groups, max(0, int(expected[rare].sum() // (2 * LEAST_EXPECTED)) - 1))
    _, groups = np.unique(groups, return_inverse=True)
    pooled = []
    for counts in (observed, expected):
        sums = np.zeros(groups.max(initial=-1) + 1)
        np.add.at(sums, groups, counts[rare])
        pooled.append(np.concatenate([counts[~rare], sums]))
    return pooled[0], pooled[1]


def compute_detectable_distance(cells: int, draws: int, level: float, power: float = POWER) -> float:
    """Return the total variation distance d detected with this power: noncentrality is at least 4 n d^2 (Cauchy-Schwarz)."""
    critical = stats.chi2.isf(level, cells - 1)

    def excess_power(noncentrality: float) -> float:
        return float(stats.ncx2.sf(critical, cells - 1, noncentrality)) - power

    return float(np.sqrt(optimize.brentq(excess_power, 1e-6, 1e5) / (4 * draws)))
