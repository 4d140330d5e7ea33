"""The bootstrap against a slow one, and against what it promises."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from specbench.analysis.statistics import Array, holm, mean_interval, quantile, rank_methods, speedup


def slow_interval(strata: Sequence[Array], resamples: int = 400, seed: int = 3) -> tuple[float, float, float]:
    """Bootstrap-t with loops, straight from Efron & Tibshirani 1993, section 12.5."""
    rng = np.random.default_rng(seed)

    def mean_and_error(groups: Sequence[Array]) -> tuple[float, float]:
        means = [float(sum(group)) / len(group) for group in groups]
        squares = [sum((x - m) ** 2 for x in g) / (len(g) - 1) / len(g) for g, m in zip(groups, means, strict=True)]
        return sum(means) / len(means), math.sqrt(sum(squares)) / len(groups)

    mean, error = mean_and_error(strata)
    t: list[float] = []
    while len(t) < resamples:
        drawn, drawn_error = mean_and_error([rng.choice(group, len(group)) for group in strata])
        if drawn_error > 1e-12:
            t.append((drawn - mean) / drawn_error)
    low, high = np.quantile(t, [0.025, 0.975])
    return mean, mean - high * error, mean - low * error


@pytest.mark.parametrize("sizes", [(30,), (12, 20, 16)])
def test_the_fast_bootstrap_agrees_with_the_slow_one(sizes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    strata = [rng.gamma(2.0, 0.2, size) for size in sizes]
    mean, low, high = slow_interval(strata)
    fast = mean_interval(strata)
    assert fast.estimate == pytest.approx(mean)
    tolerance = 0.12 * (high - low)
    message = "a 2.5 % quantile of 400 t has SE sqrt(.025*.975/400)/.05 = 0.16, 4 % of the width 3.9: 3 SE"
    assert fast.low == pytest.approx(low, abs=tolerance), message
    assert fast.high == pytest.approx(high, abs=tolerance), message


def test_a_speedup_is_a_geometric_mean_and_tasks_weigh_the_same() -> None:
    assert speedup([np.log([2.0, 8.0])]).estimate == pytest.approx(4), "sqrt(2 * 8)"
    many, few = np.log([2.0] * 9 + [2.0]), np.log([8.0, 8.0])
    assert speedup([many, few]).estimate == pytest.approx(4), "sqrt(2 * 8), whatever the number of questions"


def test_one_question_gives_no_interval() -> None:
    for strata in ([[0.3]], [[0.3, 0.4, 0.5, 0.2], [0.7]]):
        interval = speedup(strata)
        assert math.isfinite(interval.estimate) and math.isnan(interval.low) and math.isnan(interval.high)
    assert math.isnan(speedup([]).estimate)


def test_two_questions_get_students_t() -> None:
    interval = mean_interval([[0.0, 1.0]])
    assert interval.high == pytest.approx(0.5 + stats.t.ppf(0.975, 1) * 0.5), "s/sqrt(2) = 0.5, one degree of freedom"


def test_few_alike_questions_do_not_make_an_interval_without_bound() -> None:
    interval = mean_interval([[1.0, 1.001, 1.002, 1.4]])
    assert interval.high - interval.low < 0.8, "two times t(3) = 3.18 times s/2 = 0.1 are 0.64"


def test_autoregressive_against_itself_is_exactly_one() -> None:
    interval = speedup([np.zeros(5), np.zeros(5)])
    assert (interval.estimate, interval.low, interval.high) == (1, 1, 1)


def test_the_same_numbers_give_the_same_interval() -> None:
    values = [np.random.default_rng(1).normal(0.5, 0.3, 20)]
    assert speedup(values) == speedup(values)
    assert speedup(values) != speedup(values, seed=1)


def test_strata_of_two_or_three_questions_get_students_t() -> None:
    """Resamples of two questions are alike too often for a bootstrap: it covered 99 % there, with an interval twice as wide."""
    strata = [[0.0, 0.2], [0.1, 0.4], [0.3, 0.2], [0.5, 0.1], [0.0, 0.4], [0.2, 0.3]]
    interval = mean_interval(strata)
    variances = [(a - b) ** 2 / 4 for a, b in strata]
    freedom = sum(variances) ** 2 / sum(variance**2 for variance in variances)
    assert interval.high - interval.estimate == pytest.approx(stats.t.ppf(0.975, freedom) * math.sqrt(sum(variances)) / 6)


@pytest.mark.parametrize(("tasks", "questions"), [(1, 6), (1, 20), (6, 3), (6, 4)])
def test_it_covers_what_it_says_on_skewed_speedups(tasks: int, questions: int) -> None:
    rng = np.random.default_rng(2)
    truth = math.log(1.8) + 0.3
    draws = [math.log(1.8) + 0.3 * rng.exponential(1.0, (tasks, questions)) for _ in range(400)]
    intervals = [mean_interval(list(strata), resamples=400) for strata in draws]
    covered = sum(one.low <= truth <= one.high for one in intervals) / len(intervals)
    assert 0.91 <= covered <= 0.99, f"{covered:.3f}: nominal 0.95, SE sqrt(.95*.05/400) = 0.011, -3.6 and +3.6 SE"


def three(rng: np.random.Generator, questions: int = 20, gain: float = 0.0, tasks: int = 2) -> dict[str, list[Array]]:
    """Log speedups of three methods, the first two alike but for a gain, the third far slower; questions have their own level."""
    level = rng.normal(0.5, 0.3, (tasks, questions))
    offsets = {"a": 0.0, "b": gain, "c": -1.0}
    return {name: list(level + offset + rng.normal(0, 0.1, (tasks, questions))) for name, offset in offsets.items()}


def test_ranks_tell_apart_what_differs_and_tie_what_does_not() -> None:
    assert rank_methods(three(np.random.default_rng(0))) == {"a": (1, 2), "b": (1, 2), "c": (3, 3)}
    assert rank_methods(three(np.random.default_rng(0), gain=0.3)) == {"b": (1, 1), "a": (2, 2), "c": (3, 3)}
    one_question = {"a": [np.array([1.0])], "b": [np.array([0.0])]}
    assert rank_methods(one_question) == {"a": (1, 2), "b": (1, 2)}, "nothing is known of the spread"


def test_ranks_take_the_questions_that_both_have() -> None:
    values = three(np.random.default_rng(1), gain=0.3)
    values["a"][0][:3] = np.nan
    assert rank_methods(values)["b"] == (1, 1)


def test_equal_methods_are_told_apart_no_more_often_than_said() -> None:
    rng = np.random.default_rng(2)
    split = sum(rank_methods(three(rng))["a"] != (1, 2) for _ in range(600)) / 600
    assert split <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 600)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == [True, False, False, True], "0.005 < .05/4, 0.01 < .05/3, 0.03 > .05/2"
    assert holm([]) == []


def test_a_quantile_lies_between_its_order_statistics() -> None:
    values = list(range(1, 101))
    interval = quantile(values, 0.5)
    inside = sum(stats.binom.pmf(k, 100, 0.5) for k in range(int(interval.low), int(interval.high)))
    assert interval.estimate == 50.5 and inside >= 0.95
    assert math.isnan(quantile(values[:20], 0.99).high) and math.isnan(quantile([], 0.5).estimate)


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_quantile_limits_cover(share: float) -> None:
    rng = np.random.default_rng(3)
    intervals = [quantile(rng.exponential(1, 120), share) for _ in range(500)]
    covered = sum(one.low <= -math.log(1 - share) <= one.high for one in intervals) / 500
    assert covered >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / 500), "discrete limits cover a little more than 95 %"
