"""Two drafters in one: when the first drafts nothing, the other drafts."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from specbench.decoding.drafter import Drafter, SequenceContext
from specbench.decoding.language_model import LanguageModel, TargetOutput
from specbench.decoding.sampling import Sampling
from specbench.decoding.tree import DraftTree
from specbench.decoding.verify import Verification
from specbench.errors import InputError

Pair = tuple[Any, Any]  # the states of both drafters


class Fallback(Drafter):
    """For example SAM-Decoding with a trained drafter (Hu et al. 2024, section 3.3): `first` drafts if it has a long match.

    Both observe every step, including those whose tree was the other's.
    """

    def __init__(self, first: Drafter, otherwise: Drafter) -> None:
        self.parts = (first, otherwise)
        if not all(part.lossless for part in self.parts):
            raise InputError("a combination of two methods does not support typical acceptance; expected typical: null in both")

    def bind(self, target: LanguageModel) -> None:
        super().bind(target)
        for part in self.parts:
            part.bind(target)
        self.taps = tuple(layer for part in self.parts for layer in part.taps)
        self.prompt_logits = any(part.prompt_logits for part in self.parts)
        self.nodes = max(part.nodes for part in self.parts)
        self.warm = any(part.warm for part in self.parts)
        self.draws = any(part.draws for part in self.parts)

    def prepare(self, prompts: list[Tensor], samplings: list[Sampling], capacity: int) -> None:
        for part in self.parts:
            part.prepare(prompts, samplings, capacity)

    def retain(self, places: list[int]) -> None:
        for part in self.parts:
            part.retain(places)

    def reset(self) -> None:
        for part in self.parts:
            part.reset()

    def begin(self, prompts: list[list[int]], outs: list[TargetOutput], contexts: list[SequenceContext]) -> list[Pair]:
        split = zip(self.parts, self._split_outputs(outs), strict=True)
        first, otherwise = (part.begin(prompts, part_outs, contexts) for part, part_outs in split)
        return list(zip(first, otherwise, strict=True))

    def propose(self, states: list[Pair], budgets: list[int]) -> list[DraftTree]:
        first, otherwise = self.parts
        trees = first.propose([state for state, _ in states], budgets)
        left = [0 if tree.drafted else budget for tree, budget in zip(trees, budgets, strict=True)]
        others = otherwise.propose([state for _, state in states], left)
        return [tree if tree.drafted else other for tree, other in zip(trees, others, strict=True)]

    def update(self, states: list[Pair], trees: list[DraftTree], outs: list[TargetOutput], verified: list[Verification]) -> None:
        for part, part_states, part_outs in zip(self.parts, zip(*states, strict=True), self._split_outputs(outs), strict=True):
            part.update(list(part_states), trees, part_outs, verified)

    def _split_outputs(self, outs: list[TargetOutput]) -> list[list[TargetOutput]]:
        """Return the outputs for each part, with only the hidden states of its own taps."""
        return [[replace(out, hidden=self._slice_taps(out.hidden, part)) for out in outs] for part in self.parts]

    def _slice_taps(self, hidden: Tensor, part: Drafter) -> Tensor:
        if not part.taps:
            return hidden[..., :0]
        first = 0 if part is self.parts[0] else len(self.parts[0].taps)
        width = hidden.shape[-1] // len(self.taps)
        return hidden[..., first * width : (first + len(part.taps)) * width]
