"""SAM-Decoding (Hu et al. 2024): the longest end of the text that stood somewhere before is continued as it was there."""

from dataclasses import dataclass, field

from methods.rest import Rest
from methods.suffix_automaton import SuffixAutomaton
from specbench.decoding.drafter import Drafter, SequenceContext
from specbench.decoding.language_model import LanguageModel, TargetOutput
from specbench.decoding.tree import DraftTree
from specbench.decoding.verify import Verification

FILLER = 0  # the token that fills up a full chain, as in the authors' code


@dataclass
class SamState:
    """text: prompt and answer; trusted: copies are drafted; foretold: the tokens that a copy on trial still expects to come."""

    text: SuffixAutomaton
    trusted: bool
    foretold: list[int] = field(default_factory=list)
    copied: int = 0  # tokens of the draft in flight that are a copy


class SamDecoding(Drafter):
    """Looks in prompt and answer, and in `static` texts where there are some.

    Of prompt and answer there is an automaton. Of static texts the authors build one too; here a suffix array finds the same
    matches, as long as its own limit allows, and needs no memory of the process. The longer match drafts, of equal ones the
    one in prompt and answer. Static drafts are trees, of what is most frequent behind the match.

    length: most tokens drafted; factor: and no more than so many for each token of the match, where it is given. shortest: a
    shorter match drafts nothing. recent: see SuffixAutomaton. full: a chain of exactly `length` tokens, as the authors draft
    where a tree method stands beside: a shorter match is taken for one with enough text behind it, and the rest is filled up.
    trial: where it is given, copies are drafted only once one of so many tokens has proved right, which is seen without
    drafting it, and no more after a draft with less than half as many accepted. For a place beside a good drafter.
    """

    def __init__(
        self,
        length: int,
        factor: float | None,
        shortest: int,
        recent: bool,
        full: bool,
        trial: int | None,
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
        length, root, state.copied = state.text.match.length, state.text.tokens[-1], 0
        if self.static and (found := self.static.find(state.text.tokens)) and found.length > length:
            return self.static.draft_match(root, found, budget)
        copy = self._copy_match(state.text)[:budget] if length >= self.shortest else []
        if not state.trusted:
            self._start_trial(state, copy)
            copy = []
        state.copied = len(copy)
        return DraftTree.chain(self.to_tensor([root, *copy]))

    def _copy_match(self, text: SuffixAutomaton) -> list[int]:
        if self.full:
            end = text.find_shorter(self.length + 1).end  # one more: the authors count the root in
            there = text.tokens[:-1][end : end + self.length]
            return there + [FILLER] * (self.length - len(there))
        length, end = text.match
        most = self.length if self.factor is None else min(self.length, int(self.factor * length))
        return text.tokens[end : end + most]

    def _start_trial(self, state: SamState, copy: list[int]) -> None:
        if not state.foretold and self.trial and len(copy) >= self.trial:
            state.foretold = copy[: self.trial]

    def observe(self, state: SamState, tree: DraftTree, out: TargetOutput, verified: Verification) -> None:
        state.text.extend(verified.tokens)
        copied, state.copied = state.copied, 0
        if self.trial and copied:
            state.trusted = len(verified.path) - 1 >= min(self.trial // 2, copied)
        elif state.foretold:
            self._judge(state, verified.tokens)

    def _judge(self, state: SamState, came: list[int]) -> None:
        """The copy on trial fails at its first wrong token, and has proved itself when all have come."""
        right = state.foretold[: len(came)] == came[: len(state.foretold)]
        state.foretold = state.foretold[len(came) :] if right else []
        state.trusted = right and not state.foretold
