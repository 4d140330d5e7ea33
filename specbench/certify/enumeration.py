"""Whether sampled text is distributed as it should, where that can be counted out: G-tests on a miniature target.

The first token is prefill's; a method writes from the second on. The exact probability of the first one, two and three of those
tokens, and of the second and the third alone, comes from transformers' own attention; how often a method writes them, from
generating behind the same prompt again and again.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
from scipy import optimize, stats
from torch import Tensor

from specbench.certify.miniature import TOKENS, VOCABULARY
from specbench.decoding.drafter import Drafter
from specbench.decoding.language_model import LanguageModel
from specbench.decoding.loop import generate
from specbench.decoding.sampling import Sampling, probabilities

LONGEST = 3  # tokens of the longest prefix looked at
WINDOWS = ((0,), (0, 1), (0, 1, 2), (1,), (2,))  # of the method's tokens: one test each
WRITTEN = (4, 6)  # tokens of a text: half of them end with what is looked at, drafts and the token behind them included
BATCH = 128
LEAST_EXPECTED = 20.0  # draws in a cell; rarer ones are put together: with 5, one G-test in 14 has p < 0.05
POWER = 0.99
IMPOSSIBLE = 1e9  # the statistic of what has a probability of 0
AGAIN = 4  # times as many texts are drawn afresh where the first ones look wrong; only what still does counts
PROMPT = (2, 5, 3, 4, 2, 5, 3, 4, 6, 2, 5, 3, 4, 2, 5)  # repeats itself, so that there is something to look up

Array = np.ndarray


@dataclass(frozen=True)
class GTest:
    """tokens: which of the method's were looked at, from 0.

    cells: of the test, rare continuations put together; finds: the total variation distance between those cells that is found
    with a power of 0.99; level: below which a p-value is a finding.
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
    """(TOKENS, TOKENS, TOKENS): the probability of every continuation behind the first token."""
    texts = torch.tensor(list(product(range(TOKENS), repeat=LONGEST)))
    prompt = torch.tensor(PROMPT).expand(len(texts), -1)
    with target.use_original_attention() as model:
        logits: Tensor = model(torch.cat([prompt, texts], dim=1), use_cache=False).logits[:, -1 - LONGEST :]
    p = probabilities(logits, sampling).double()
    assert float(p[..., TOKENS:].sum()) == 0
    p = p[..., :TOKENS].reshape(*[TOKENS] * LONGEST, LONGEST + 1, TOKENS)
    joint = p[0, 0, 0, 0]  # of the first token
    for place in range(1, LONGEST + 1):
        known = (slice(None),) * place + (0,) * (LONGEST - place)
        joint = joint[..., None] * p[(*known, place)]
    behind: Array = joint.sum(dim=0).numpy()
    return behind / behind.sum()


def draw_tokens(target: LanguageModel, drafter: Drafter, sampling: Sampling, draws: int) -> Array:
    """(draws, 3) tokens behind the first one. The seed of `sampling` makes them the same again."""
    drafter.bind(target)
    drafter.reset()
    prompt, found = torch.tensor(PROMPT), []
    for batch, start in enumerate(range(0, draws, BATCH)):
        own = replace(sampling, max_new_tokens=WRITTEN[batch % 2], stop_token_ids=(), seed=sampling.seed * 1_000_003 + batch)
        outs = generate(target, drafter, [prompt] * min(BATCH, draws - start), own)
        found += [out.output_ids[1 : 1 + LONGEST] for out in outs]
    return np.array(found)


def run_tests(target: LanguageModel, drafter: Drafter, sampling: Sampling, draws: int, level: float) -> list[list[GTest]]:
    """The tests of `draws` texts, and those of AGAIN times as many where one of them fails its level: the last ones count."""
    wanted = exact(target, sampling)
    found = [run_g_tests(draw_tokens(target, drafter, sampling, draws), wanted, level)]
    if any(test.p_value < level for test in found[0]):
        afresh = replace(sampling, seed=sampling.seed + 1)
        found.append(run_g_tests(draw_tokens(target, drafter, afresh, AGAIN * draws), wanted, level))
    return found


def can_show(target: LanguageModel, sampling: Sampling, draws: int) -> bool:
    """Whether a test of so many texts has two cells or more."""
    wanted = exact(target, sampling)
    return any(
        len(_pool_cells(expected, expected)[1]) > 1 for window in WINDOWS for expected in [_marginalise(wanted, window) * draws]
    )


def run_g_tests(found: Array, wanted: Array, level: float) -> list[GTest]:
    """A test of every window that has two cells or more. level: of each test, for what it `finds`. Raises ValueError for none."""
    tests = [test for window in WINDOWS if (test := _run_g_test(found, wanted, window, level))]
    if not tests:
        raise ValueError(f"{len(found)} texts, all of which are nearly certain, show nothing: more draws or a higher temperature")
    return tests


def _run_g_test(found: Array, wanted: Array, window: tuple[int, ...], level: float) -> GTest | None:
    draws = len(found)
    probable = _marginalise(wanted, window)
    counted = np.zeros([VOCABULARY] * len(window))
    np.add.at(counted, tuple(found[:, window].T), 1)
    if counted.sum() > counted[tuple([slice(TOKENS)] * len(window))][probable > 0].sum():  # what is never written there
        return GTest(window, draws, probable.size, IMPOSSIBLE, 0.0, 0.0, level)
    counted = counted[tuple([slice(TOKENS)] * len(window))]
    observed, expected = _pool_cells(counted[probable > 0], probable[probable > 0] * draws)
    if len(expected) < 2:
        return None
    statistic, p_value = stats.power_divergence(observed, expected, lambda_="log-likelihood")
    return GTest(
        window,
        draws,
        len(expected),
        float(statistic),
        float(p_value),
        compute_detectable_distance(len(expected), draws, level),
        level,
    )


def _marginalise(wanted: Array, window: tuple[int, ...]) -> Array:
    """The probabilities of the window's tokens alone."""
    alone: Array = wanted.sum(axis=tuple(place for place in range(LONGEST) if place not in window))
    return alone


def _pool_cells(observed: Array, expected: Array) -> tuple[Array, Array]:
    """Cells that expect too little are put together, neighbours with neighbours; too little of them, with the smallest other."""
    rare = expected < LEAST_EXPECTED
    if rare.any() and expected[rare].sum() < LEAST_EXPECTED and not rare.all():
        rare[np.where(rare, np.inf, expected).argmin()] = True
    groups = (np.cumsum(expected[rare]) // (2 * LEAST_EXPECTED)).astype(int)
    groups = np.minimum(groups, max(0, int(expected[rare].sum() // (2 * LEAST_EXPECTED)) - 1))
    _, groups = np.unique(groups, return_inverse=True)
    pooled = []
    for counts in (observed, expected):
        together = np.zeros(groups.max(initial=-1) + 1)
        np.add.at(together, groups, counts[rare])
        pooled.append(np.concatenate([counts[~rare], together]))
    return pooled[0], pooled[1]


def compute_detectable_distance(cells: int, draws: int, level: float, power: float = POWER) -> float:
    """The total variation distance d that is found with this power: noncentrality is at least 4 n d^2 (Cauchy-Schwarz)."""
    critical = stats.chi2.isf(level, cells - 1)
    missed: Callable[[float], float] = lambda away: float(stats.ncx2.sf(critical, cells - 1, away)) - power  # noqa: E731
    return float(np.sqrt(optimize.brentq(missed, 1e-6, 1e5) / (4 * draws)))
