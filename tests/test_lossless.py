"""Every YAML of conf/method on every tiny architecture in float64: token for token what transformers' own generate writes.
Above temperature 0 it is what autoregressive decoding writes with the same random numbers, unless drafts are drawn.

Nothing names a method here: a new YAML is tested without an edit, also for what it remembers from one turn to the next.
"""

import os
from functools import lru_cache
from typing import Any

import pytest
import torch

from specbench.decoding.drafter import Drafter
from specbench.decoding.loop import Generation, generate
from specbench.decoding.sampling import Sampling
from specbench.decoding.tree import DraftTree
from specbench.decoding.verify import SamplingVerifier
from specbench.drafters.yardstick import Yardstick
from specbench.setup.compose import compose_run
from tests.methods_under_test import LABELS, NUMBERS_ALONE, drafter_of, target_of
from tests.tiny import ARCHITECTURES, prompts

SAMPLING = Sampling(max_new_tokens=20, stop_token_ids=(1, 7))
PROMPTS = prompts(int(os.environ.get("LOSSLESS_PROMPTS", "12")))  # 200 for a thorough look
BATCH, SOME = 3, 6
SAMPLED = Sampling(temperature=0.9, top_p=0.95, max_new_tokens=20, stop_token_ids=(1, 7), seed=3)


def on_architectures(tier: pytest.MarkDecorator) -> pytest.MarkDecorator:
    """The first architecture in every tier of tests, the others from this one on."""
    first, *others = ARCHITECTURES
    return pytest.mark.parametrize("architecture", [first, *(pytest.param(other, marks=tier) for other in others)])


def tier(label: str) -> pytest.MarkDecorator:
    """The tier in which a method is tried on further architectures."""
    return pytest.mark.slow if label in NUMBERS_ALONE else pytest.mark.full


every_pair = pytest.mark.parametrize(
    ("architecture", "label"),
    [
        pytest.param(architecture, label, marks=[tier(label)] * (architecture != ARCHITECTURES[0]))
        for architecture in ARCHITECTURES
        for label in LABELS
    ],
)
every_method = pytest.mark.parametrize("label", LABELS)


@lru_cache
@torch.inference_mode()
def expected(architecture: str) -> list[list[int]]:
    """What transformers writes, prompt by prompt."""
    with target_of(architecture).use_original_attention() as original:
        model: Any = original
        return [
            model.generate(
                prompt[None],
                attention_mask=torch.ones_like(prompt)[None],
                do_sample=False,
                max_new_tokens=SAMPLING.max_new_tokens,
                eos_token_id=list(SAMPLING.stop_token_ids),
                pad_token_id=0,
            )[0, len(prompt) :].tolist()
            for prompt in PROMPTS
        ]


@lru_cache
def decoded_in_order(label: str, architecture: str) -> tuple[Drafter, list[Generation]]:
    """A new drafter, and what it made of the prompts one by one."""
    drafter = drafter_of(label, architecture)
    drafter.bind(target_of(architecture))
    return drafter, decoded(drafter, PROMPTS)


def decoded(drafter: Drafter, prompts: list[torch.Tensor], batch: int = 1, sampling: Sampling = SAMPLING) -> list[Generation]:
    outs: list[Generation] = []
    for start in range(0, len(prompts), batch):
        outs += generate(drafter.target, drafter, prompts[start : start + batch], sampling)
    return outs


def counts(out: Generation) -> tuple[object, ...]:
    return (out.output_ids, out.finish_reason, out.drafted, out.nodes, out.depth, out.accepted, out.committed)


@every_pair
def test_one_sequence_at_a_time(architecture: str, label: str) -> None:
    drafter, outs = decoded_in_order(label, architecture)
    for prompt, out, tokens in zip(PROMPTS, outs, expected(architecture), strict=True):
        assert out.output_ids == tokens, f"{label} behind {prompt.tolist()}"
        assert out.finish_reason == ("eos" if tokens[-1] in SAMPLING.stop_token_ids else "length")
    accepted, drafted = sum(sum(out.accepted) for out in outs), sum(sum(out.drafted) for out in outs)
    assert drafted or label == "autoregressive", "a method that drafts nothing shows nothing"
    if drafted:
        some = accepted < drafted or isinstance(drafter, Yardstick)
        assert accepted > 0 and some, f"{accepted} of {drafted} drafted tokens: only partial acceptance shows errors"


@pytest.mark.slow  # test_batches.py compares three on the first architecture
@every_method
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_three_sequences_side_by_side(architecture: str, label: str) -> None:
    """The same tokens; the same counts too where nothing outlives a turn."""
    drafter, alone = decoded_in_order(label, architecture)
    outs = decoded(drafter, PROMPTS, BATCH)
    assert [out.output_ids for out in outs] == expected(architecture)
    if not drafter.warm:
        assert [counts(out) for out in outs] == [counts(out) for out in alone]


@lru_cache
def drawn_autoregressively(architecture: str) -> list[list[int]]:
    plain = drafter_of("autoregressive", architecture)
    plain.bind(target_of(architecture))
    return [out.output_ids for out in decoded(plain, PROMPTS[:SOME], BATCH, SAMPLED)]


@every_pair
def test_sampled_text_is_the_same_with_the_same_random_numbers(architecture: str, label: str) -> None:
    """Of every method whose drafts are not drawn; those that are say so, and say what from."""
    drafter = drafter_of(label, architecture)
    drafter.bind(target_of(architecture))
    if not drafter.lossless:
        return  # lossy
    told: list[bool] = []
    propose = drafter.propose
    drafter.propose = lambda *given: [told.append(tree.probs is not None) or tree for tree in propose(*given)]  # type: ignore[method-assign, func-returns-value]
    outs = decoded(drafter, PROMPTS[:SOME], BATCH, SAMPLED)
    if not drafter.draws:
        assert [out.output_ids for out in outs] == drawn_autoregressively(architecture)
    assert drafter.draws == any(told), "Drafter.draws says whether trees have the probabilities they were drawn from"


@every_method
def test_a_tree_tells_the_distributions_that_its_tokens_were_drawn_from(label: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Speculative sampling is lossless only for that q: the rows of `probs` are those that the verifier drew from, in order."""
    drafter = drafter_of(label, "llama")
    drafter.bind(target_of("llama"))
    drawn: list[torch.Tensor] = []
    for name in ("pick", "rank"):
        monkeypatch.setattr(SamplingVerifier, name, remember(getattr(SamplingVerifier, name), drawn))
    propose = drafter.propose

    def check(states: list[Any], budgets: list[int]) -> list[DraftTree]:
        drawn.clear()
        trees = propose(states, budgets)
        rows = torch.cat([tree.probs for tree in trees if tree.probs is not None] or [torch.empty(0)])
        assert torch.equal(rows, torch.cat(drawn or [torch.empty(0)])[: len(rows)])
        return trees

    drafter.propose = check  # type: ignore[method-assign]
    decoded(drafter, PROMPTS[:SOME], sampling=SAMPLED)


def remember(choose: Any, drawn: list[torch.Tensor]) -> Any:
    """Keep the probabilities that a choice was made by."""

    def choose_and_remember(self: SamplingVerifier, *given: Any) -> Any:
        tokens, probabilities = choose(self, *given)
        drawn.append(probabilities)
        return tokens, probabilities

    return choose_and_remember


@every_method
def test_order_leaves_no_trace(label: str) -> None:
    """The same tokens in any order; the same counts too where nothing outlives a turn, and after a reset where something does."""
    drafter, forwards = decoded_in_order(label, "llama")
    backwards = decoded(drafter, PROMPTS[::-1])[::-1]
    assert [out.output_ids for out in backwards] == expected("llama")
    if drafter.warm:
        drafter.reset()
        backwards = decoded(drafter, PROMPTS)
    assert [counts(out) for out in forwards] == [counts(out) for out in backwards]


@every_method
def test_at_the_end_of_the_context(label: str) -> None:
    """The last tokens that fit: nothing is drafted, or looked at, behind them."""
    target, drafter = target_of("llama"), drafter_of(label, "llama")
    (prompt,) = prompts(1, seed=4)
    long = prompt.repeat(30)[: target.context - 12]
    outs = []
    for one in (drafter_of("autoregressive", "llama"), drafter):
        one.bind(target)
        outs += generate(target, one, [long], Sampling(max_new_tokens=99))
    assert outs[1].output_ids == outs[0].output_ids and len(outs[1].output_ids) == 12
    assert outs[1].finish_reason == "capacity"


def test_the_outputs_end_in_both_ways() -> None:
    for architecture in ARCHITECTURES:
        ends = {tokens[-1] in SAMPLING.stop_token_ids for tokens in expected(architecture)}
        assert ends == {True, False} and len({tuple(tokens) for tokens in expected(architecture)}) > len(PROMPTS) / 2


def test_a_yaml_puts_itself_under_its_own_name() -> None:
    for label in LABELS:
        assert set(compose_run([f"method=[{label}]"]).method) == {"autoregressive", label}
