"""The enumeration tests of a certificate hold their levels and detect what they claim."""

import json
from dataclasses import asdict
from itertools import product

import numpy as np
import pytest
import torch
from scipy import stats

from benchmarks.planted import Miniature
from specbench.certify import enumeration
from specbench.certify.miniature import build_drafter, build_miniature
from specbench.decoding.language_model import LanguageModel
from specbench.decoding.sampling import Sampling, probabilities

pytestmark = pytest.mark.full

SMALL = Miniature(draws=512)
WARM = Sampling(temperature=0.8, top_p=0.95, max_new_tokens=12, seed=3)


@torch.inference_mode()
def logits_after(target: LanguageModel, tokens: list[int]) -> torch.Tensor:
    """Return (V,) by our own engine."""
    return target.prefill(target.create_store(len(tokens)), [torch.tensor(tokens)])[0].logits[0]


def test_the_enumerated_distribution_is_the_targets_own_step_by_step() -> None:
    """Against one forward per prefix over our own store."""
    target_probs = enumeration.exact(SMALL.target, WARM)
    assert target_probs.shape == (8, 8, 8) and target_probs.sum() == pytest.approx(1)
    slow = 0.0
    for first in range(8):
        written, likely = [first, 2, 5, 7], 1.0
        for index, token in enumerate(written):
            likely *= float(probabilities(logits_after(SMALL.target, [*enumeration.PROMPT, *written[:index]]), WARM)[token])
        slow += likely
    assert target_probs[2, 5, 7] == pytest.approx(slow, rel=1e-4)


def test_g_tests_raise_false_alarms_at_their_level() -> None:
    """On draws from the distribution that is tested against."""
    rng = np.random.default_rng(0)
    target_probs = enumeration.exact(SMALL.target, WARM)
    cells = np.array(list(product(range(8), repeat=3)))
    p_values = [
        test.p_value
        for _ in range(200)
        for test in enumeration.run_g_tests(cells[rng.choice(512, 2000, p=target_probs.ravel())], target_probs, 0.01)
    ]
    assert stats.binomtest(sum(p < 0.05 for p in p_values), len(p_values), 0.05).pvalue > 1e-3
    assert sum(p < 0.05 / 5 for p in p_values) < 25


def test_the_detectable_distance_is_detected() -> None:
    """A distribution that far away fails at that level in 99 of 100 cases or more."""
    rng = np.random.default_rng(1)
    target_probs = np.full((8, 8, 8), 1 / 512)
    away = enumeration.compute_detectable_distance(8, 4000, 0.01)
    shifted = np.full(8, 1 / 8) + away / 4 * np.repeat([1, -1], 4)
    tests = 0
    for _ in range(300):
        drawn = np.stack([rng.choice(8, 4000, p=shifted), rng.integers(8, size=4000), rng.integers(8, size=4000)], axis=1)
        tests += enumeration.run_g_tests(drawn, target_probs, 0.01)[0].p_value < 0.01
    assert 0.5 * np.abs(shifted - 1 / 8).sum() == pytest.approx(away)
    assert tests >= 290


def test_an_impossible_token_is_found_at_once() -> None:
    target_probs = np.zeros((8, 8, 8))
    target_probs[:4, :4, :4] = 1 / 64
    drawn = np.random.default_rng(2).integers(4, size=(100, 3))
    for impossible in (7, 15):  # one of the eight tokens, and one that is never written at all
        drawn[0, 0] = impossible
        found = enumeration.run_g_tests(drawn, target_probs, 0.01)[0]
        assert found.p_value == 0 and json.dumps(asdict(found), allow_nan=False)


def test_texts_that_are_nearly_certain_show_nothing() -> None:
    nearly_certain = np.full((8, 8, 8), 1e-9)
    nearly_certain[0, 0, 0] = 1 - 511e-9
    with pytest.raises(ValueError, match="more draws"):
        enumeration.run_g_tests(np.zeros((300, 3), dtype=int), nearly_certain, 0.01)


@pytest.mark.parametrize("draws", [256, 1000, 8192])
def test_no_cell_expects_too_little(draws: int) -> None:
    target_probs = np.random.default_rng(0).dirichlet(np.full(512, 0.1)) * draws
    _, expected = enumeration._pool_cells(target_probs, target_probs)
    assert expected.min() >= enumeration.LEAST_EXPECTED and expected.sum() == pytest.approx(draws)


def test_siblings_with_a_rank_left_out_are_drawn_one_after_the_other() -> None:
    paths = {"paths": [[0], [2], [0, 1], [0, 3]]}
    drafter = build_drafter({"_target_": "methods.eagle.Eagle", "checkpoint": None, "tree": paths, "dtype": "auto"}, SMALL.draft)
    tests = enumeration.run_tests(SMALL.target, drafter, Sampling(temperature=1.0), 2048, 1e-3)[-1]
    assert min(test.p_value for test in tests) > 1e-3


@pytest.mark.parametrize("architecture", ["gemma2", "gemma3_text", "phi3", "olmo2"])
def test_miniatures_of_other_architectures_write_eight_tokens(architecture: str) -> None:
    assert enumeration.exact(build_miniature(architecture)[0], Sampling(temperature=10.0)).sum() == pytest.approx(1)
