"""The decode loop on a target whose next token is a function of the last one, and a drafter told how often to be right."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from specbench.decoding.autoregressive import Autoregressive
from specbench.decoding.drafter import Drafter, SequenceContext
from specbench.decoding.kv_store import KVStore
from specbench.decoding.language_model import LanguageModel, TargetOutput
from specbench.decoding.loop import CapacityError, Generation, capacity, generate
from specbench.decoding.sampling import Sampling
from specbench.decoding.tree import DraftTree
from specbench.decoding.verify import Verification
from tests.tiny import tiny_language_model

VOCABULARY = 256


def successor(token: int) -> int:
    """A walk through all 256 tokens before any comes again."""
    return (5 * token + 3) % VOCABULARY


def walk(token: int, count: int) -> list[int]:
    """The `count` tokens behind `token`."""
    walked = [token]
    for _ in range(count):
        walked.append(successor(walked[-1]))
    return walked[1:]


class Walker(LanguageModel):
    """A target without weights; counts its forwards and remembers the largest position it was shown."""

    def __init__(self, context: int = 1000) -> None:
        self.context, self.vocabulary, self.device = context, VOCABULARY, torch.device("cpu")
        self.forwards, self.furthest = 0, 0

    def tap(self, layers: tuple[int, ...]) -> None:
        assert layers == ()

    def forward(self, store: KVStore, trees: list[DraftTree], last_only: bool = False) -> list[TargetOutput]:
        self.forwards += 1
        for length, tree in zip(store.lengths, trees, strict=True):
            assert length + len(tree) <= store.capacity, f"{length} committed + {len(tree)} new > {store.capacity}"
            self.furthest = max(self.furthest, length + tree.depth)
        return [TargetOutput(torch.eye(VOCABULARY)[[successor(token) for token in tree.tokens.tolist()]]) for tree in trees]


class Guess(Drafter):
    """Drafts `right` right tokens and `wrong` wrong ones behind them; `bushy`: with a wrong and a scratch node at the root."""

    def __init__(self, right: int, wrong: int = 0, bushy: bool = False) -> None:
        self.right, self.wrong, self.bushy = right, wrong, bushy
        self.nodes = (3 + right + wrong) * bushy
        self.budgets: list[list[int]] = []
        self.reserved = self.begun = 0

    def prepare(self, prompts: list[torch.Tensor], samplings: list[Sampling], capacity: int) -> None:
        self.reserved = capacity

    def start(self, prompt: list[int], out: TargetOutput, context: SequenceContext) -> list[int]:
        self.begun += 1
        return prompt[-1:]

    def propose(self, states: list[list[int]], budgets: list[int]) -> list[DraftTree]:
        self.budgets.append(budgets)
        return super().propose(states, budgets)

    def draft(self, state: list[int], budget: int) -> DraftTree:
        tokens = walk(state[0], self.right)
        tokens = [*state, *tokens, *([successor(tokens[-1] if tokens else state[0]) ^ 1] * self.wrong)][: 1 + budget]
        parents = list(range(-1, len(tokens) - 1))
        if not self.bushy or not budget:
            return DraftTree.chain(torch.tensor(tokens))
        scratch = torch.tensor([False] * (len(tokens) + 1) + [True])
        tokens, parents = [*tokens, successor(state[0]) ^ 1, successor(state[0])], [*parents, 0, 0]
        return DraftTree(torch.tensor(tokens), torch.tensor(parents), scratch=scratch)

    def observe(self, state: list[int], tree: DraftTree, out: TargetOutput, verified: Verification) -> None:
        state[0] = verified.next_token


def run(
    drafter: Drafter, prompts: list[list[int]], target: Walker | None = None, profile: bool = False, **sampling: Any
) -> list[Generation]:
    ids = [torch.tensor(prompt) for prompt in prompts]
    target = target or Walker()
    drafter.bind(target)
    return generate(target, drafter, ids, Sampling(**sampling), profile=profile)


def counts(out: Generation) -> tuple[object, ...]:
    """All that does not depend on the clock or on who decodes beside it."""
    return (out.output_ids, out.finish_reason, out.drafted, out.nodes, out.depth, out.accepted, out.committed)


def check(out: Generation) -> None:
    """What holds for every generation."""
    assert out.output_ids and 1 + sum(out.committed) == len(out.output_ids), "the first token comes from prefill"
    lists = (out.drafted, out.nodes, out.depth, out.accepted, out.committed)
    assert {len(each) for each in lists} == {out.steps}, "one entry per step"
    for drafted, nodes, depth, accepted, committed in zip(*lists, strict=True):
        assert accepted <= depth <= drafted <= nodes - 1
        assert 1 <= committed <= accepted + 1
    assert all(c == a + 1 for a, c in list(zip(out.accepted, out.committed, strict=True))[:-1]), "only the last step is cut"


# --- length


@pytest.mark.parametrize("bushy", [False, True], ids=["chain", "tree"])
@pytest.mark.parametrize("right, wrong", [(0, 0), (0, 2), (1, 0), (3, 1), (4, 0), (7, 3)])
def test_exactly_max_new_tokens(right: int, wrong: int, bushy: bool) -> None:
    for max_new_tokens in range(1, 14):
        drafter = Guess(right, wrong, bushy)
        (out,) = run(drafter, [[9, 8]], max_new_tokens=max_new_tokens)
        assert out.output_ids == walk(8, max_new_tokens) and out.finish_reason == "length"
        check(out)
        assert out.steps == -(-(max_new_tokens - 1) // (right + 1)), "each step but the last commits right + 1"
        assert all(budget == max_new_tokens - 1 - i * (right + 1) - 1 for i, (budget,) in enumerate(drafter.budgets))


def test_the_counts_of_a_chain_and_of_a_tree() -> None:
    (chain,) = run(Guess(right=3, wrong=1), [[1]], max_new_tokens=13)
    assert chain.committed == [4, 4, 4] and chain.accepted == [3, 3, 3], "1 + 3 x 4 = 13"
    assert chain.drafted == chain.depth == [4, 4, 3] and chain.nodes == [5, 5, 4], "the last budget is 13 - 9 - 1 = 3"
    (tree,) = run(Guess(right=3, wrong=1, bushy=True), [[1]], max_new_tokens=13)
    assert (tree.committed, tree.accepted, tree.depth) == (chain.committed, chain.accepted, chain.depth)
    assert tree.drafted == [5, 5, 4] and tree.nodes == [7, 7, 6], "one wrong sibling more, and one scratch node in nodes alone"


def test_one_token_needs_no_drafter() -> None:
    drafter = Guess(3)
    (out,) = run(drafter, [[1]], max_new_tokens=1)
    assert (out.output_ids, out.steps, drafter.begun) == (walk(1, 1), 0, 0)


# --- end of sequence


@pytest.mark.parametrize("right", [0, 2, 5])
def test_the_first_stop_token_is_the_last_token(right: int) -> None:
    for length in range(1, 12):
        ends = walk(1, length)[-1]
        (out,) = run(Guess(right, wrong=1), [[1]], max_new_tokens=50, stop_token_ids=(ends, walk(1, 40)[-1]))
        assert out.output_ids == walk(1, length) and out.finish_reason == "eos"
        check(out)
        assert out.steps == -(-(length - 1) // (right + 1))


def test_accepted_tokens_behind_the_end_are_not_counted() -> None:
    (out,) = run(Guess(right=6), [[1]], max_new_tokens=50, stop_token_ids=(walk(1, 4)[-1],))
    assert (out.committed, out.accepted, out.drafted) == ([3], [3], [6]), "of six right drafts the third ends the sequence"


def test_a_stop_token_in_the_last_place_is_an_end_and_not_a_length_cut() -> None:
    (out,) = run(Guess(right=2), [[1]], max_new_tokens=6, stop_token_ids=(walk(1, 6)[-1],))
    assert (len(out.output_ids), out.finish_reason) == (6, "eos")


def test_an_end_at_the_first_token_needs_no_drafter() -> None:
    drafter = Guess(3)
    (out,) = run(drafter, [[1]], max_new_tokens=9, stop_token_ids=(successor(1),))
    assert (out.output_ids, out.finish_reason, out.steps, drafter.begun) == ([successor(1)], "eos", 0, 0)


def test_a_stop_token_in_the_prompt_does_not_stop() -> None:
    (out,) = run(Guess(1), [[7, 1]], max_new_tokens=5, stop_token_ids=(1, 7))
    assert out.finish_reason == "length"


# --- capacity


@pytest.mark.parametrize("bushy", [False, True], ids=["chain", "tree"])
@pytest.mark.parametrize("right", [0, 3])
@pytest.mark.parametrize("room", [1, 2, 5, 9])
def test_decoding_ends_where_the_context_ends(right: int, room: int, bushy: bool) -> None:
    target = Walker(context=20)
    prompt = list(range(20 - room))
    (out,) = run(Guess(right, wrong=2, bushy=bushy), [prompt], target, max_new_tokens=10)
    assert out.output_ids == walk(prompt[-1], room) and out.finish_reason == "capacity"
    check(out)
    assert target.furthest < 20, "no position beyond the context"


def test_a_context_that_just_suffices_is_a_length_cut() -> None:
    (out,) = run(Guess(3), [list(range(10))], Walker(context=20), max_new_tokens=10)
    assert (len(out.output_ids), out.finish_reason) == (10, "length")


@pytest.mark.parametrize("lengths", [[20], [25], [3, 20], [21, 3]])
def test_a_prompt_without_room_fails_before_the_first_forward(lengths: list[int]) -> None:
    target, drafter = Walker(context=20), Guess(3)
    with pytest.raises(CapacityError, match=f"a prompt of {max(lengths)} tokens does not fit a context of 20"):
        run(drafter, [list(range(length)) for length in lengths], target)
    assert (target.forwards, drafter.begun) == (0, 0)


def test_capacity_is_prompt_answer_and_the_largest_tree() -> None:
    drafter = Guess(right=4, wrong=1, bushy=True)
    assert capacity(Walker(), drafter, 10, Sampling(max_new_tokens=30)) == 10 + 30 + 8, "root, 5 drafts, sibling, scratch"
    assert capacity(Walker(context=25), drafter, 10, Sampling(max_new_tokens=30)) == 25 + 8
    run(drafter, [[1, 2]], max_new_tokens=30)
    assert drafter.reserved >= 2 + 30 + 8


# --- batches


BATCH = [[1, 2, 3], [40] * 9, [7], list(range(30))]


@pytest.mark.parametrize("drafter", [Guess(0), Guess(3, 1), Guess(2, 2, bushy=True)], ids=["root", "chain", "tree"])
@pytest.mark.parametrize("context", [1000, 33])
def test_a_batch_equals_one_by_one(drafter: Guess, context: int) -> None:
    sampling: dict[str, Any] = {"max_new_tokens": 12, "stop_token_ids": (walk(7, 5)[-1], walk(3, 8)[-1])}
    together = run(drafter, BATCH, Walker(context), **sampling)
    alone = [run(drafter, [prompt], Walker(context), **sampling)[0] for prompt in BATCH]
    assert [counts(out) for out in together] == [counts(out) for out in alone]
    expected = ["eos", "length", "eos", "length" if context == 1000 else "capacity"]
    assert [out.finish_reason for out in together] == expected
    for out in together:
        check(out)


def test_one_forward_a_step_for_all_sequences_and_none_beyond_the_longest() -> None:
    target, drafter = Walker(), Guess(1)
    outs = run(drafter, [[1], [2]], target, max_new_tokens=9, stop_token_ids=(walk(2, 3)[-1],))
    assert [out.steps for out in outs] == [4, 1] and target.forwards == 1 + 4, "prefill and the longest one's steps"
    assert [len(budgets) for budgets in drafter.budgets] == [2, 1, 1, 1], "a finished sequence leaves the batch"


def test_finished_sequences_idle_until_they_are_half_of_the_batch() -> None:
    """Of four, one ends after 2 tokens, one after 4 and two after 9."""
    target, drafter = Walker(), Guess(0)
    outs = run(drafter, [[1], [2], [3], [4]], target, max_new_tokens=9, stop_token_ids=(walk(2, 2)[-1], walk(3, 4)[-1]))
    assert [len(out.output_ids) for out in outs] == [9, 2, 4, 9]
    assert [budgets[1:] for budgets in drafter.budgets][:3] == [[7, 7, 7], [0, 6, 6], [0, 5, 5]]
    assert [len(budgets) for budgets in drafter.budgets] == [4] * 3 + [2] * 5


# --- the rest


def test_a_store_is_reused_when_it_is_large_enough() -> None:
    target, drafter = Walker(), Guess(3)
    drafter.bind(target)
    store = target.create_store(60)
    prompts = [[1, 2], list(range(20)), [9]]
    for prompt in prompts:
        (out,) = generate(target, drafter, [torch.tensor(prompt)], Sampling(max_new_tokens=10), store)
        assert out.output_ids == walk(prompt[-1], 10) and drafter.reserved == 60
    generate(target, drafter, [torch.tensor(list(range(90)))], Sampling(max_new_tokens=10), store)
    assert drafter.reserved == 90 + 10, "too small a store is replaced"


def test_phases_are_clocked_in_profiled_runs_alone() -> None:
    for profile in (False, True):
        (out,) = run(Guess(2), [[1]], max_new_tokens=9, profile=profile)
        assert (out.draft_s is not None, out.verify_s is not None) == (profile, profile)
        assert out.prefill_s > 0 and out.decode_s > 0
        if profile:
            assert out.draft_s is not None and out.verify_s is not None
            assert 0 < out.draft_s + out.verify_s <= out.decode_s


def test_the_walk_visits_every_token_once() -> None:
    walked = walk(0, VOCABULARY)
    assert sorted(walked) == list(range(VOCABULARY)) and all(successor(a) == b for a, b in pairwise(walked))


def test_a_draft_deeper_than_its_budget_is_refused_by_name() -> None:
    class Deep(Autoregressive):
        def draft(self, state: list[Tensor], budget: int) -> DraftTree:
            return DraftTree.chain(state[0].repeat(budget + 2))

    drafter, target = Deep(), tiny_language_model()
    drafter.bind(target)
    with pytest.raises(ValueError, match="Deep drafted 4 tokens deep, with a budget of 3"):
        generate(target, drafter, [torch.tensor([3, 4])], Sampling(max_new_tokens=5))


def test_logits_that_turn_into_no_numbers_end_the_turn_and_say_where() -> None:
    class Failing(Walker):
        def forward(self, store: KVStore, trees: list[DraftTree], last_only: bool = False) -> list[TargetOutput]:
            outs = super().forward(store, trees, last_only)
            return [TargetOutput(out.logits * math.nan) for out in outs] if self.forwards == 4 else outs

    with pytest.raises(ArithmeticError, match="after 3 new tokens: logits are not finite numbers"):
        run(Guess(right=0), [[3, 4]], Failing(), max_new_tokens=9)
