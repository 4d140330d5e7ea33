"""Yardsticks that know the answer: what this engine makes of perfect drafts, and of drafts as good as one likes.

Before the clock runs they decode the prompt autoregressively; then they draft from that. What is left is the cost of
verifying, apart from any drafter's own time and skill. Rows of such a run are labelled synthetic.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from specbench.decoding.autoregressive import Autoregressive
from specbench.decoding.drafter import SequenceContext
from specbench.decoding.language_model import LanguageModel, TargetOutput
from specbench.decoding.loop import generate
from specbench.decoding.sampling import Sampling
from specbench.decoding.tree import DraftTree
from specbench.decoding.verify import Verification
from specbench.drafters.yardstick import Yardstick
from specbench.errors import InputError


@dataclass
class OracleState:
    """answer (n,), in ids and on the device; at: the root's place in it, None once the output has left it."""

    answer: list[int]
    tokens: Tensor
    at: int | None
    coins: random.Random  # Synthetic's


class Oracle(Yardstick):
    """Perfect drafts of `length` tokens at no cost: the ceiling of any drafter of chains."""

    def __init__(self, length: int) -> None:
        self.length = length

    def bind(self, target: LanguageModel) -> None:
        super().bind(target)
        self._answers: dict[tuple[int, ...], tuple[Sampling, list[int]]] = {}
        self._plain = Autoregressive()
        self._plain.bind(target)

    def prepare(self, prompts: list[Tensor], sampling: Sampling, capacity: int) -> None:
        for prompt in prompts:
            key = tuple(prompt.tolist())
            if key not in self._answers or self._answers[key][0] != sampling:
                (out,) = generate(self.target, self._plain, [prompt], sampling)
                self._answers[key] = (sampling, out.output_ids)

    def start(self, prompt: list[int], out: TargetOutput, context: SequenceContext) -> OracleState:
        _, answer = self._answers[tuple(prompt[:-1])]
        begun_so = answer[0] == prompt[-1]  # not in a batch above temperature 0, where every row draws for itself
        return OracleState(
            answer if begun_so else prompt[-1:], self.to_tensor(answer), 0 if begun_so else None, random.Random(repr(prompt))
        )

    def draft(self, state: OracleState, budget: int) -> DraftTree:
        if state.at is None:
            return DraftTree.chain(self.to_tensor(state.answer[-1:]))
        return DraftTree.chain(state.tokens[state.at : state.at + 1 + min(self.length, budget)])

    def observe(self, state: OracleState, tree: DraftTree, out: TargetOutput, verified: Verification) -> None:
        """Rounding may lead the target elsewhere at a near-tie; from there on the answer is of no use."""
        if state.at is not None:
            behind = state.at + 1 + len(verified.tokens)
            state.at = behind - 1 if state.answer[state.at + 1 : behind] == verified.tokens else None
        if state.at is None:
            state.answer = verified.tokens


class Synthetic(Oracle):
    """The k-th draft token is right with the k-th of `rates`, given that all before it are (the last one holds from there on)."""

    def __init__(self, length: int, rates: Sequence[float]) -> None:
        super().__init__(length)
        if not rates or not all(0 <= rate <= 1 for rate in rates):
            raise InputError(f"rates={list(rates)}: expected one or more numbers from 0 to 1")
        self.rates = rates

    def draft(self, state: OracleState, budget: int) -> DraftTree:
        tree = super().draft(state, budget)
        right = self._count_right(state.coins, len(tree) - 1)
        if right == len(tree) - 1:
            return tree
        tokens = tree.tokens.clone()
        tokens[right + 1] = (tokens[right + 1] + 1) % self.target.vocabulary
        return DraftTree.chain(tokens)

    def _count_right(self, coins: random.Random, drafted: int) -> int:
        """How many of the first tokens are left as they are."""
        for place in range(drafted):
            if coins.random() >= self.rates[min(place, len(self.rates) - 1)]:
                return place
        return drafted
