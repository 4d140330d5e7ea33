"""Yardsticks that know the answer: the speedup of perfect drafts, and of drafts with given acceptance rates.

They decode the prompt autoregressively before the clock runs and draft from that answer, so what is measured is the cost of
verification alone. Results of such runs are labelled synthetic.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specbench.bounds import Length, Probability
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
    answer: list[int]  # or the tokens committed last, once the output has left the answer
    tokens: Tensor  # (n,) the answer on the device
    position: int | None  # of the root in the answer; None once the output has left it
    coins: random.Random  # used by Synthetic


class Oracle(Yardstick):
    """Perfect drafts of `length` tokens at no cost: the upper bound of all drafters of chains."""

    def __init__(self, length: Length) -> None:
        self.length = length

    def bind(self, target: LanguageModel) -> None:
        super().bind(target)
        self._answers: dict[tuple[int, ...], tuple[Sampling, list[int]]] = {}
        self._plain = Autoregressive()
        self._plain.bind(target)

    def prepare(self, prompts: list[Tensor], samplings: list[Sampling], capacity: int) -> None:
        for prompt, sampling in zip(prompts, samplings, strict=True):
            key = tuple(prompt.tolist())
            if key not in self._answers or self._answers[key][0] != sampling:
                (out,) = generate(self.target, self._plain, [prompt], sampling)
                self._answers[key] = (sampling, out.output_ids)

    def start(self, prompt: list[int], out: TargetOutput, context: SequenceContext) -> OracleState:
        _, answer = self._answers[tuple(prompt[:-1])]
        tokens, coins = self.to_tensor(answer), random.Random(repr(prompt))
        if answer[0] != prompt[-1]:  # the same prompt twice in a batch, with other random numbers
            return OracleState(prompt[-1:], tokens, None, coins)
        return OracleState(answer, tokens, 0, coins)

    def draft(self, state: OracleState, budget: int) -> DraftTree:
        if state.position is None:
            return DraftTree.chain(torch.tensor(state.answer[-1:]))
        return DraftTree.chain(state.tokens[state.position : state.position + 1 + min(self.length, budget)])

    def observe(self, state: OracleState, tree: DraftTree, out: TargetOutput, verified: Verification) -> None:
        """At a near-tie, rounding may lead the target away from the answer, which is then useless."""
        if state.position is not None:
            last = state.position + len(verified.tokens)
            state.position = last if state.answer[state.position + 1 : last + 1] == verified.tokens else None
        if state.position is None:
            state.answer = verified.tokens


class Synthetic(Oracle):
    """Draft token k is right with probability rates[k], given that all before it are; the last rate holds from there on."""

    def __init__(self, length: Length, rates: Sequence[Probability]) -> None:
        super().__init__(length)
        if not rates:
            raise InputError("rates=[]: expected one or more numbers from 0 to 1")
        self.rates = rates

    def draft(self, state: OracleState, budget: int) -> DraftTree:
        tree = super().draft(state, budget)
        for k in range(len(tree) - 1):
            if state.coins.random() >= self.rates[min(k, len(self.rates) - 1)]:  # the first wrong token
                tokens = tree.tokens.clone()
                tokens[k + 1] = (tokens[k + 1] + 1) % self.target.vocabulary
                return DraftTree.chain(tokens)
        return tree
