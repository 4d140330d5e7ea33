"""Prompt lookup decoding (Saxena 2023): draft the tokens that followed the same n-gram earlier in prompt and answer."""

from itertools import cycle, islice
from typing import Literal

import torch

from specbench.bounds import Length, TokenId
from specbench.decoding.drafter import Drafter, SequenceContext
from specbench.decoding.language_model import LanguageModel, TargetOutput, check_token
from specbench.decoding.tree import DraftTree
from specbench.decoding.verify import Verification
from specbench.errors import InputError

MatchChoice = Literal["first", "last"]


class NgramIndex:
    """The first or last position of each n-gram in the tokens so far, if a token follows it."""

    def __init__(self, tokens: list[int], sizes: range, match: MatchChoice) -> None:
        self.tokens: list[int] = []
        self.sizes, self.match = sizes, match
        self._starts: dict[tuple[int, ...], int] = {}
        self.extend(tokens)

    def extend(self, tokens: list[int]) -> None:
        old = len(self.tokens)
        self.tokens += tokens
        for size in self.sizes:
            starts = range(max(0, old - size), len(self.tokens) - size)
            grams = [(tuple(self.tokens[i : i + size]), i) for i in starts]
            if self.match == "last":
                self._starts.update(grams)
            else:
                for gram, i in grams:
                    self._starts.setdefault(gram, i)

    def find(self, size: int) -> int | None:
        """Return the start of the match for the last `size` tokens."""
        return self._starts.get(tuple(self.tokens[-size:]))


class PromptLookup(Drafter):
    """Tries n-grams from `max_ngram` down to `min_ngram` tokens and copies up to `length` tokens after the match.

    match: use the first or the last earlier occurrence. full: accept only a first occurrence that is followed by all `length`
    tokens and ends before the n-gram begins, as in Spec-Bench. filler: token drafted when nothing matches (Spec-Bench: 100), or
    null. beyond: copy on past the end of the text, from the draft itself: repeating text is drafted for more than one period.
    """

    def __init__(
        self,
        max_ngram: Length,
        min_ngram: Length,
        length: Length,
        match: MatchChoice,
        full: bool,
        filler: TokenId | None,
        beyond: bool = False,
    ) -> None:
        if min_ngram > max_ngram:
            raise InputError(f"pld: min_ngram={min_ngram} is above max_ngram={max_ngram}")
        if full and match == "last":
            raise InputError("pld: match=last excludes full=true, whose matches end before the n-gram; use match=first")
        self.sizes = range(max_ngram, min_ngram - 1, -1)
        self.length, self.match, self.full, self.filler, self.beyond = length, match, full, filler, beyond

    def bind(self, target: LanguageModel) -> None:
        super().bind(target)
        check_token(self.filler, "filler", target.vocabulary)

    def start(self, prompt: list[int], out: TargetOutput, context: SequenceContext) -> NgramIndex:
        return NgramIndex(prompt, self.sizes, self.match)

    def draft(self, state: NgramIndex, budget: int) -> DraftTree:
        return DraftTree.chain(torch.tensor(state.tokens[-1:] + self.copy_match(state)[:budget]))

    def copy_match(self, index: NgramIndex) -> list[int]:
        """Return the copied tokens, or the filler when nothing matches."""
        for size in self.sizes:
            start = index.find(size)
            if start is not None and (not self.full or self._is_full(start, size, len(index.tokens))):
                copy = index.tokens[start + size : start + size + self.length]
                return list(islice(cycle(copy), self.length)) if self.beyond else copy
        return [] if self.filler is None else [self.filler]

    def _is_full(self, start: int, size: int, known: int) -> bool:
        return start + size + self.length <= known and start + size < known - size

    def observe(self, state: NgramIndex, tree: DraftTree, out: TargetOutput, verified: Verification) -> None:
        state.extend(verified.tokens)
