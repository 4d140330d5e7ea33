"""The distribution that tokens are drawn from, against transformers' own, and the draws themselves."""

import pytest
import torch
from scipy import stats
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from specbench.decoding.sampling import Dice, Sampling, probabilities, spread_seed

CPU = torch.device("cpu")


@pytest.mark.parametrize("sampling", [Sampling(0.7), Sampling(1.3, top_k=5), Sampling(1.0, top_p=0.8), Sampling(0.5, 0.9, 20)])
@pytest.mark.parametrize("vocabulary", [12, 1000])
def test_temperature_top_k_and_top_p_as_in_transformers(sampling: Sampling, vocabulary: int) -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, vocabulary) * torch.tensor([[0.01], [0.5], [1], [3], [9]])  # flat to peaked
    wanted = TemperatureLogitsWarper(sampling.temperature)(None, logits)
    if sampling.top_k:
        wanted = TopKLogitsWarper(sampling.top_k)(None, wanted)
    if sampling.top_p < 1:
        wanted = TopPLogitsWarper(sampling.top_p)(None, wanted)
    torch.testing.assert_close(probabilities(logits, sampling), wanted.softmax(dim=-1), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(probabilities(logits[3], sampling), probabilities(logits, sampling)[3])


def test_equals_at_the_edge_of_the_nucleus_all_stay_in_any_batch() -> None:
    logits = torch.zeros(2, 600)
    logits[0, 100:] = -30.0  # a hundred equals; and six hundred, more than are looked at first
    found = probabilities(logits, Sampling(1.0, top_p=0.5))
    assert found[0, :100].tolist() == pytest.approx([0.01] * 100) and found[1].tolist() == pytest.approx([1 / 600] * 600)
    assert torch.equal(probabilities(logits[0], Sampling(1.0, top_p=0.5)), found[0])


def test_draws_follow_the_weights_and_nothing_of_weight_zero_is_drawn() -> None:
    weights = torch.tensor([0.0, 3.0, 0.0, 1.0, 6.0, 0.0])
    dice = Dice(0, CPU)
    found = torch.stack([dice.draw(weights) for _ in range(3000)]).bincount(minlength=6)
    assert found[weights == 0].sum() == 0
    assert stats.chisquare(found[weights > 0], [900, 300, 1800]).pvalue > 1e-3


def test_distinct_draws_are_without_replacement_in_the_order_of_their_drawing() -> None:
    weights = torch.tensor([[0.5, 0.3, 0.2, 0.0]])
    found = Dice(1, CPU).draw_distinct(weights.expand(4000, -1), 4)
    assert (found.sort(dim=1).values == torch.arange(4)).all() and (found[:, 3] == 3).all()
    pairs = (found[:, 0] * 3 + found[:, 1]).bincount(minlength=9)
    wanted = [0.5 * 0.3 / 0.5, 0.5 * 0.2 / 0.5, 0.3 * 0.5 / 0.7, 0.3 * 0.2 / 0.7, 0.2 * 0.5 / 0.8, 0.2 * 0.3 / 0.8]
    assert stats.chisquare(pairs[[1, 2, 3, 5, 6, 7]], [4000 * chance for chance in wanted]).pvalue > 1e-3


def test_the_same_seed_gives_the_same_numbers_and_neighbours_others() -> None:
    def number(seed: int) -> float:
        return float(Dice(seed, CPU).draw_uniform())

    assert number(1) == number(1)
    first = [number(own) for seed in range(40) for own in [seed, *spread_seed(seed, 4)]]
    assert len(set(first)) == 200 and stats.kstest(first, "uniform").pvalue > 1e-3
