"""Token Recycling against a dictionary that is filled and read one token at a time."""

import pytest
import torch

from methods.token_recycling import RecyclingState, TokenRecycling
from specbench.decoding.drafter import SequenceContext
from specbench.decoding.language_model import LanguageModel, TargetOutput
from specbench.decoding.loop import Generation, generate
from specbench.decoding.sampling import Sampling
from specbench.decoding.tree import DraftTree
from specbench.decoding.verify import Verification
from tests.methods_under_test import target_of
from tests.tiny import prompts

TREE = {"paths": [[0], [1], [2], [0, 0], [0, 1], [1, 0], [0, 0, 0], [1, 0, 0]]}


class Watched(TokenRecycling):
    """Notes every draft, and what the dictionary would have drafted."""

    def bind(self, target: LanguageModel) -> None:
        super().bind(target)
        self.drafts: list[tuple[list[int], list[int]]] = []

    def reset(self) -> None:
        super().reset()
        self.known: dict[int, list[int]] = {}

    def start(self, prompt: list[int], out: TargetOutput, context: SequenceContext) -> RecyclingState:
        if not self.warm:
            self.known = {}
        read = prompt[:-1] if self.prompt_logits else prompt[-2:-1]
        self.learn(read, out.logits)
        return super().start(prompt, out, context)

    def learn(self, tokens: list[int], logits: torch.Tensor) -> None:
        for token, row in zip(tokens, logits, strict=True):
            self.known[token] = row.topk(3).indices.tolist()

    def draft(self, state: RecyclingState, budget: int) -> DraftTree:
        tree = super().draft(state, budget)
        paths = sorted((path for path in TREE["paths"] if len(path) <= budget), key=lambda path: (len(path), path))
        slow = [int(state.root)]
        for path in paths:
            token = int(state.root)
            for rank in path:
                token = self.known.get(token, [0, 0, 0])[rank]
            slow.append(token)
        self.drafts.append((tree.tokens.tolist(), slow))
        return tree

    def observe(self, state: RecyclingState, tree: DraftTree, out: TargetOutput, verified: Verification) -> None:
        self.learn(tree.tokens.tolist(), out.logits)
        super().observe(state, tree, out, verified)


def decoded(drafter: TokenRecycling) -> list[Generation]:
    target = target_of("llama")
    drafter.bind(target)
    target.tap(())
    return [generate(target, drafter, [prompt], Sampling(max_new_tokens=30))[0] for prompt in prompts(8)]


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("prompt_logits", [False, True])
def test_drafts_equal_the_dictionarys(warm: bool, prompt_logits: bool) -> None:
    drafter = Watched(TREE, warm, prompt_logits)
    decoded(drafter)
    assert len(drafter.drafts) > 100
    for fast, slow in drafter.drafts:
        assert fast == slow


def test_warm_remembers_other_questions_until_the_reset() -> None:
    cold, warm = TokenRecycling(TREE, False, False), TokenRecycling(TREE, True, False)
    first, later = (sum(sum(out.accepted) for out in decoded(drafter)) for drafter in (cold, warm))
    assert (cold.warm, warm.warm) == (False, True) and later > first
    assert warm._kept.any()
    warm.reset()
    assert not warm._kept.any()


def test_of_equal_tokens_the_last_ones_logits_count() -> None:
    drafter = TokenRecycling(TREE, False, False)
    drafter.bind(target_of("llama"))
    matrix, logits = drafter._create_matrix(), torch.zeros(4, 128)
    for row, best in enumerate([10, 20, 30, 40]):
        logits[row, best] = 1
    drafter._recycle(matrix, torch.tensor([7, 8, 7, 9]), logits)
    assert matrix[[7, 8, 9], 0].tolist() == [30, 20, 40] and not matrix[6].any()
