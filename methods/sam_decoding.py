"""SAM-Decoding (Hu et al. 2024): find the longest suffix that occurred earlier and draft the tokens that followed it."""

from dataclasses import dataclass, field
from typing import Annotated

import torch

from methods.rest import Rest
from methods.suffix_automaton import SuffixAutomaton
from specbench.bounds import Length, Within
from specbench.decoding.drafter import Drafter, SequenceContext
from specbench.decoding.language_model import LanguageModel, TargetOutput
from specbench.decoding.tree import DraftTree
from specbench.decoding.verify import Verification

FILLER = 0  # token that pads a full chain, as in the authors' code


@dataclass
class SamState:
    text: SuffixAutomaton  # prompt and answer
    trusted: bool  # copies are drafted
    expected: list[int] = field(default_factory=list)  # the tokens of a copy on probation that have not come yet
    copied: int = 0  # copied tokens of the draft in flight


class SamDecoding(Drafter):
    """Searches prompt and answer and, if given, the `static` texts; the longer match drafts, that of prompt and answer if equal.

    Prompt and answer are indexed by a suffix automaton. For static texts the authors build one too; here a suffix array on disk
    finds the same matches up to its own longest length. Static drafts are trees of the most frequent continuations.

    length: most tokens drafted. factor: if given, at most this many per matched token. shortest: shorter matches draft nothing.
    recent: see SuffixAutomaton. full: a chain of exactly `length` tokens, as the authors draft next to a tree method: prefer a
    shorter match followed by enough text, and pad the rest. trial: if given, copies are on probation: they are drafted only
    after one of `trial` tokens has turned out right undrafted, until a draft has fewer than half as many accepted.
    """

    def __init__(
        self,
        length: Length,
        factor: Annotated[float, Within(0.001, 1024)] | None,
        shortest: Length,
        recent: bool,
        full: bool,
        trial: Length | None,
        static: Rest | None,
    ) -> None:
        self.length, self.factor, self.shortest = length, factor, shortest
        self.recent, self.full, self.trial, self.static = recent, full, trial, static
        self.parts = (static,) if static else ()

    def bind(self, target: LanguageModel) -> None:
        super().bind(target)
        if self.static:
            self.static.bind(target)
            self.nodes = self.static.nodes

    def start(self, prompt: list[int], out: TargetOutput, context: SequenceContext) -> SamState:
        state = SamState(SuffixAutomaton(self.recent), trusted=self.trial is None)
        state.text.extend(prompt)
        return state

    def draft(self, state: SamState, budget: int) -> DraftTree:
        length, root = state.text.match.length, state.text.tokens[-1]
        state.copied = 0
        if self.static and (match := self.static.find(state.text.tokens)) and match.length > length:
            return self.static.draft_match(root, match, budget)
        copy = self._copy_match(state.text)[:budget] if length >= self.shortest else []
        if not state.trusted:
            if not state.expected and self.trial and len(copy) >= self.trial:
                state.expected = copy[: self.trial]
            copy = []
        state.copied = len(copy)
        return DraftTree.chain(torch.tensor([root, *copy]))

    def _copy_match(self, text: SuffixAutomaton) -> list[int]:
        if self.full:
            end = text.find_shorter(self.length + 1).end  # one more: the authors count the root
            copy = text.tokens[:-1][end : end + self.length]
            return copy + [FILLER] * (self.length - len(copy))
        length, end = text.match
        most = self.length if self.factor is None else min(self.length, int(self.factor * length))
        return text.tokens[end : end + most]

    def observe(self, state: SamState, tree: DraftTree, out: TargetOutput, verified: Verification) -> None:
        state.text.extend(verified.tokens)
        copied, state.copied = state.copied, 0
        if self.trial and copied:
            state.trusted = len(verified.path) - 1 >= min(self.trial // 2, copied)
        elif state.expected:
            self._judge(state, verified.tokens)

    def _judge(self, state: SamState, committed: list[int]) -> None:
        """End the probation at the first wrong token, or trust copies once all expected tokens have come."""
        right = state.expected[: len(committed)] == committed[: len(state.expected)]
        state.expected = state.expected[len(committed) :] if right else []
        state.trusted = right and not state.expected
