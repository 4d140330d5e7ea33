"""SAM-Decoding (Hu et al. 2024): the longest end of the text that stood somewhere before is continued as it was there."""

from methods.rest import Rest
from methods.suffix_automaton import SuffixAutomaton
from specbench.decoding.drafter import Drafter
from specbench.decoding.language_model import LanguageModel, TargetOutput
from specbench.decoding.tree import DraftTree
from specbench.decoding.verify import Verified

FILLER = 0  # the token that fills up a full chain, as in the authors' code


class SamDecoding(Drafter):
    """Looks in prompt and answer, and in `static` texts where there are some.

    Of prompt and answer there is an automaton. Of static texts the authors build one too; here a suffix array finds the same
    matches, of up to `longest` tokens, and needs no memory of the process. The longer match drafts; a static one counts
    `static_bias` tokens less. Static drafts are trees, of what is most frequent behind the match.

    length: most tokens drafted; factor: and no more than so many for each token of the match, where it is given. shortest: a
    shorter match drafts nothing. recent: see SuffixAutomaton. full: a chain of exactly `length` tokens, as the authors draft
    where a tree method stands beside: a shorter match is taken for one with enough text behind it, and the rest is filled up.
    """

    def __init__(
        self,
        length: int,
        factor: float | None,
        shortest: int,
        recent: bool,
        full: bool,
        static: Rest | None,
        static_bias: int,
    ) -> None:
        self.length, self.factor, self.shortest = length, factor, shortest
        self.recent, self.full, self.static, self.static_bias = recent, full, static, static_bias
        self.parts = (static,) if static else ()

    def bind(self, target: LanguageModel) -> None:
        super().bind(target)
        if self.static:
            self.static.bind(target)
            self.nodes = self.static.nodes

    def start(self, prompt: list[int], out: TargetOutput) -> SuffixAutomaton:
        state = SuffixAutomaton(self.recent)
        state.extend(prompt)
        return state

    def draft(self, state: SuffixAutomaton, budget: int) -> DraftTree:
        length = state.match.length
        if self.static and (found := self.static.find(state.tokens)) and found.length - self.static_bias > length:
            return self.static.drafted(state.tokens[-1], found, budget)
        drafted = self._copied(state) if length >= self.shortest else []
        return DraftTree.chain(self.ids(state.tokens[-1:] + drafted[:budget]))

    def _copied(self, state: SuffixAutomaton) -> list[int]:
        if self.full:
            end = state.shorter(self.length).end
            there = state.tokens[:-1][end : end + self.length]
            return there + [FILLER] * (self.length - len(there))
        length, end = state.match
        most = self.length if self.factor is None else min(self.length, int(self.factor * length))
        return state.tokens[end : end + most]

    def observe(self, state: SuffixAutomaton, tree: DraftTree, out: TargetOutput, verified: Verified) -> None:
        state.extend(verified.tokens)
