"""Speculative sampling: every draft is the draft model's own greedy continuation, and as long as the schedule says.

The slow reference runs the draft model's plain cacheless forward from the committed tokens at every step, so a wrong KV entry
after a rejection shows as a wrong draft.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from methods.sps import DraftState, SpeculativeSampling
from specbench.decoding.drafter import SequenceContext
from specbench.decoding.language_model import LanguageModel, TargetOutput
from specbench.decoding.loop import Generation, generate
from specbench.decoding.sampling import Sampling
from specbench.decoding.tree import DraftTree
from specbench.decoding.verify import Verification
from specbench.errors import InputError
from tests.methods_under_test import draft_model_of, drafter_of, target_of
from tests.tiny import NO_CONTEXT, SHAPE, VOCABULARY, prompts, tiny_language_model, tiny_model

FAMILIES = ["llama", "gemma", "mistral"]


@dataclass
class Step:
    """What one step looked like from outside: row, committed tokens, budget, draft, how much of it was accepted."""

    row: int
    committed: list[int]
    budget: int
    draft: list[int]
    accepted: int = -1


class Watched(SpeculativeSampling):
    """Notes every step; `committed` per row is kept here, apart from the drafter's own books."""

    def begin(self, prompts: list[list[int]], outs: list[TargetOutput], contexts: list[SequenceContext]) -> list[DraftState]:
        self.steps: list[Step] = []
        self.committed = [list(prompt) for prompt in prompts]
        self.begun = super().begin(prompts, outs, contexts)
        return list(self.begun)

    def propose(self, states: list[DraftState], budgets: list[int]) -> list[DraftTree]:
        trees = super().propose(states, budgets)
        rows = [next(row for row, state in enumerate(self.begun) if state is one) for one in states]  # some may have ended
        self.now = [
            Step(row, list(self.committed[row]), budget, tree.tokens.tolist()[1:])
            for row, budget, tree in zip(rows, budgets, trees, strict=True)
        ]
        assert [tree.tokens.tolist()[0] for tree in trees] == [self.committed[row][-1] for row in rows], "the roots"
        return trees

    def update(
        self, states: list[DraftState], trees: list[DraftTree], outs: list[TargetOutput], verified: list[Verification]
    ) -> None:
        super().update(states, trees, outs, verified)
        for state, choice in zip(states, verified, strict=True):  # of those that have not ended
            step = next(one for one in self.now if self.begun[one.row] is state)
            step.accepted = len(choice.path) - 1
            self.committed[step.row] += choice.tokens
            self.steps.append(step)


def watched(draft: LanguageModel, **changes: Any) -> Watched:
    plain: dict[str, Any] = {"draft_tokens": 5, "schedule": "fixed", "confidence": 0.0, "stop_at_eos": False}
    return Watched(draft, **{**plain, **changes})


def run(drafter: Watched, target: LanguageModel, ids: list[torch.Tensor], max_new_tokens: int = 24) -> list[Generation]:
    drafter.bind(target)
    return generate(target, drafter, ids, Sampling(max_new_tokens=max_new_tokens, stop_token_ids=(1,)))


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def greedy(draft: LanguageModel, tokens: list[int], wanted: int, confidence: float, stop_at_eos: bool) -> list[int]:
    """Up to `wanted` tokens, one cacheless forward of the unmodified draft model each."""
    drafted: list[int] = []
    with draft.use_original_attention() as model:
        while len(drafted) < wanted:
            logits = model(input_ids=torch.tensor([tokens + drafted]), use_cache=False).logits[0, -1]
            drafted.append(int(logits.argmax()))
            if (confidence and logits.softmax(-1).max() < confidence) or (stop_at_eos and drafted[-1] == 1):
                break
    return drafted


def check(drafter: Watched) -> None:
    """Every draft against the reference, K by the schedule's rule in methods.md 2.1 alone."""
    wanted = {step.row: drafter.draft_tokens for step in drafter.steps}
    for step in drafter.steps:
        limit = min(wanted[step.row], step.budget)
        assert step.draft == greedy(drafter.model, step.committed, limit, drafter.confidence, drafter.stop_at_eos)
        if drafter.schedule == "heuristic" and step.budget:
            whole = step.accepted == wanted[step.row]
            wanted[step.row] = wanted[step.row] + 2 if whole else max(1, wanted[step.row] - 1)


SETTINGS = {
    "fixed": {"draft_tokens": 4},
    "one token": {"draft_tokens": 1},
    "heuristic": {"schedule": "heuristic"},
    "confidence": {"draft_tokens": 9, "confidence": 0.4},
    "end of sequence": {"draft_tokens": 9, "stop_at_eos": True},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize("family", FAMILIES)
def test_drafts_are_the_draft_models_greedy_continuation(family: str, settings: dict[str, Any]) -> None:
    drafter = watched(draft_model_of(family), **settings)
    accepted: list[tuple[int, int]] = []
    for prompt in prompts(4, seed=3):
        (out,) = run(drafter, target_of(family), [prompt])
        check(drafter)
        assert out.draft_forwards == sum(out.drafted), "a forward of the draft model for each drafted token"
        accepted += zip(out.accepted, out.drafted, strict=True)
    assert any(a < d for a, d in accepted) and any(a == d for a, d in accepted), "rejections and full acceptances both occur"


@pytest.mark.parametrize("settings", [SETTINGS["fixed"], SETTINGS["heuristic"]], ids=["fixed", "heuristic"])
def test_a_batch_drafts_for_each_row_what_it_drafts_for_it_alone(settings: dict[str, Any]) -> None:
    drafter, alone = (watched(draft_model_of("llama"), **settings) for _ in range(2))
    three = prompts(3, seed=3)
    outs = run(drafter, target_of("llama"), three)
    check(drafter)
    for row, prompt in enumerate(three):
        (out,) = run(alone, target_of("llama"), [prompt])
        steps = [step for step in drafter.steps if step.row == row][: out.steps]
        assert [step.draft for step in steps] == [step.draft for step in alone.steps]
        assert outs[row].output_ids == out.output_ids


def test_an_answer_of_one_token_counts_no_forward_of_the_turn_before() -> None:
    drafter = watched(draft_model_of("llama"))
    ids = prompts(1, seed=3)
    assert run(drafter, target_of("llama"), ids)[0].draft_forwards > 0
    assert run(drafter, target_of("llama"), ids, max_new_tokens=1)[0].draft_forwards == 0


# --- the schedule


def wanted_lengths(drafter: Watched) -> list[int]:
    """Draft lengths where the budget did not cut them."""
    return [len(step.draft) for step in drafter.steps if step.budget > len(step.draft)]


def test_two_more_after_a_full_acceptance() -> None:
    drafter, target = watched(target_of("llama"), schedule="heuristic"), tiny_language_model("llama", layers=2)
    run(drafter, target, [torch.tensor([5, 6, 7])], max_new_tokens=40)
    assert wanted_lengths(drafter) == [5, 7, 9, 11], "1 + 6 + 8 + 10 + 12 = 37 of 40 tokens"


def test_one_less_after_a_rejection_at_least_one_and_back_at_every_turn() -> None:
    drafter, target = watched(tiny_language_model("llama", layers=2, seed=9), schedule="heuristic"), target_of("llama")
    for _ in range(2):
        (out,) = run(drafter, target, [torch.tensor([5, 6, 7])], max_new_tokens=14)
        assert sum(out.accepted) == 0, "an unrelated model is right once in 128 tokens"
        assert wanted_lengths(drafter)[:7] == [5, 4, 3, 2, 1, 1, 1]


def test_a_draft_that_stopped_early_counts_as_a_rejection() -> None:
    drafter = watched(target_of("llama"), schedule="heuristic", confidence=1.0)
    (out,) = run(drafter, tiny_language_model("llama", layers=2), [torch.tensor([5, 6, 7])], max_new_tokens=14)
    assert set(out.drafted[:-1]) == {1} and out.accepted == out.drafted, "no token is that sure: drafts of one, all accepted"
    drafter.prepare([torch.tensor([5, 6, 7])], [Sampling()], 64)
    states = drafter.begin([[5, 6, 7]], [TargetOutput(torch.empty(0))], [NO_CONTEXT])
    for expected in (4, 3, 2, 1, 3):
        (tree,) = drafter.propose(states, [99])
        nodes = list(range(len(tree)))
        verified = Verification(nodes, 9, [*tree.tokens.tolist()[1:], 9])
        drafter.update(states, [tree], [TargetOutput(torch.empty(0))], [verified])
        assert states[0].length == expected, "the accepted 1 is compared with the 5, 4, 3, 2, 1 asked for"


def test_spec_benchs_preset_is_transformers_default_of_its_time() -> None:
    drafter = drafter_of("sps_spec_bench", "llama")
    assert isinstance(drafter, SpeculativeSampling) and (drafter.draft_tokens, drafter.schedule) == (5, "heuristic")
    assert drafter.confidence == 0 and drafter.stop_at_eos


# --- stops


def test_a_draft_ends_behind_its_first_unsure_token() -> None:
    draft, target = draft_model_of("llama"), target_of("llama")
    for confidence, shortest in [(1e-9, 5), (1.0, 1)]:
        drafter = watched(draft, confidence=confidence)
        (out,) = run(drafter, target, [torch.tensor([5, 6, 7])], max_new_tokens=12)
        assert out.drafted[0] == shortest, f"the threshold is {confidence}"


def test_a_draft_ends_behind_the_end_of_sequence() -> None:
    model = tiny_model("llama", layers=2)
    model.generation_config.eos_token_id = list(range(2, VOCABULARY))
    for stop_at_eos, length in [(False, 5), (True, 1)]:
        drafter = watched(LanguageModel(model), stop_at_eos=stop_at_eos)
        (out,) = run(drafter, target_of("llama"), [torch.tensor([5, 6, 7])], max_new_tokens=12)
        assert out.drafted[0] == length


def test_the_budget_cuts_the_draft() -> None:
    drafter = watched(target_of("llama"))
    (out,) = run(drafter, tiny_language_model("llama", layers=2), [torch.tensor([5, 6, 7])], max_new_tokens=10)
    assert (out.drafted, out.accepted) == ([5, 2], [5, 2]), "1 + 6 + 3 = 10 tokens"
    (out,) = run(drafter, tiny_language_model("llama", layers=2), [torch.tensor([5, 6, 7])], max_new_tokens=8)
    assert (out.drafted, out.draft_forwards) == ([5, 0], 5), "1 + 6 + 1 = 8: the last token needs no draft"


# --- vocabularies


def with_vocabulary(rows: int) -> LanguageModel:
    """The tiny draft model with another number of embedding rows; one that the target lacks is often its favourite."""
    model: Any = tiny_model("llama", layers=2)
    given = dict(draft_model_of("llama").model.state_dict())
    other = type(model)(type(model.config)(**{**SHAPE, "vocab_size": rows}, num_hidden_layers=2)).double()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        resized = other.state_dict()[name]
        resized[: len(given[name])] = given[name][:rows]
        resized[len(given[name]) :] *= 50
        given[name] = resized
    other.load_state_dict(given)
    return LanguageModel(other)


@pytest.mark.parametrize("rows", [VOCABULARY - 1, VOCABULARY + 1], ids=["one row less", "one row more"])
def test_vocabularies_may_be_padded_differently(rows: int) -> None:
    drafter, last = watched(with_vocabulary(rows), draft_tokens=4), VOCABULARY - 1
    for ids in [torch.tensor([5, last, 6, last]), *prompts(2, seed=3)]:
        run(drafter, target_of("llama"), [ids])
        for step in drafter.steps:
            assert step.draft == padded_greedy(drafter.model, step.committed, len(step.draft))


@pytest.mark.parametrize("rows", [VOCABULARY - 1, VOCABULARY + 1], ids=["one row less", "one row more"])
def test_drafts_from_another_padding_are_tested_with_their_true_probabilities(rows: int) -> None:
    drafter = watched(with_vocabulary(rows), draft_tokens=4)
    drafter.bind(target_of("llama"))
    for seed in range(6):
        (out,) = generate(drafter.target, drafter, prompts(1, seed), Sampling(1.0, max_new_tokens=24, seed=seed))
        assert len(out.output_ids) == 24 and max(out.output_ids) < VOCABULARY


def padded_greedy(draft: LanguageModel, tokens: list[int], count: int) -> list[int]:
    """Only the target's tokens are drafted; one that the draft model lacks is read as its last."""
    drafted: list[int] = []
    with draft.use_original_attention() as model:
        for _ in range(count):
            known = torch.tensor([min(token, draft.vocabulary - 1) for token in tokens + drafted])
            drafted.append(int(model(input_ids=known[None], use_cache=False).logits[0, -1, :VOCABULARY].argmax()))
    return drafted


@pytest.mark.parametrize("rows", [64, VOCABULARY - 2, VOCABULARY + 2])
def test_another_vocabulary_is_refused(rows: int) -> None:
    with pytest.raises(InputError, match=rf"\b{rows} tokens.*\b{VOCABULARY}\b"):
        watched(with_vocabulary(rows)).bind(target_of("llama"))
