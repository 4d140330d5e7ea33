"""The yardsticks: perfect drafts, and drafts as good as one likes."""

from math import ceil

import pytest

from methods.oracle import Oracle, Synthetic
from specbench.decoding.drafter import Drafter
from specbench.decoding.loop import Generation, generate
from specbench.decoding.sampling import Sampling
from specbench.errors import InputError
from specbench.setup.instantiate import instantiate
from tests.methods_under_test import target_of
from tests.tiny import prompts

SAMPLING = Sampling(max_new_tokens=40, stop_token_ids=(1,))


def decoded(drafter: Drafter, count: int = 6) -> list[Generation]:
    target = target_of("llama")
    drafter.bind(target)
    return [generate(target, drafter, [prompt], SAMPLING)[0] for prompt in prompts(count)]


@pytest.mark.parametrize("length", [1, 4, 7])
def test_the_oracle_takes_as_few_steps_as_drafts_of_its_length_allow(length: int) -> None:
    for out in decoded(Oracle(length)):
        assert out.accepted == out.drafted and out.steps == ceil((len(out.output_ids) - 1) / (length + 1))


def test_synthetic_drafts_are_accepted_at_their_rates() -> None:
    outs = decoded(Synthetic(3, [0.9, 0.4]), count=40)
    accepted = [(a, d) for out in outs for a, d in zip(out.accepted, out.depth, strict=True)]
    for place, rate in enumerate([0.9, 0.4, 0.4]):
        reached = [a > place for a, d in accepted if a >= place and d > place]
        share, error = sum(reached) / len(reached), (rate * (1 - rate) / len(reached)) ** 0.5
        assert abs(share - rate) < 4 * error, f"{share:.2f} of {len(reached)} at place {place + 1}, 4 x {error:.3f} allowed"


def test_rates_of_one_and_of_nothing() -> None:
    perfect, hopeless = decoded(Synthetic(4, [1.0])), decoded(Synthetic(4, [0.0]))
    assert [out.accepted for out in perfect] == [out.accepted for out in decoded(Oracle(4))]
    assert all(not any(out.accepted) and any(out.drafted) for out in hopeless)
    assert [out.output_ids for out in perfect] == [out.output_ids for out in hopeless]


def test_an_answer_that_the_target_leaves_is_drafted_from_no_more() -> None:
    oracle = Oracle(4)
    oracle.bind(target_of("llama"))
    (prompt,) = prompts(1)
    oracle.prepare([prompt], [SAMPLING], capacity=300)
    _, answer = oracle._answers[tuple(prompt.tolist())]
    answer[6] = (answer[6] + 1) % 128  # as if the target had rounded otherwise
    (out,) = generate(oracle.target, oracle, [prompt], SAMPLING)
    assert out.accepted[:2] == [4, 0] and not any(out.drafted[2:]) and out.output_ids[:6] == answer[:6]


@pytest.mark.parametrize("rates", [[], [1.2], [0.5, -0.1]])
def test_rates_are_shares(rates: list[float]) -> None:
    node = {"_target_": "methods.oracle.Synthetic", "length": 4, "rates": rates}
    with pytest.raises(
        InputError, match=r"rates=\[\]: expected one or more|rates\.[01]=.*: expected a number, at least 0 and at most 1"
    ):
        instantiate(node, Synthetic, "method.synthetic")
