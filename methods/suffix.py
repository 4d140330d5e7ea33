"""Suffix decoding (Oliaro et al. 2024): draft what most often followed the last tokens, in this text and in earlier answers."""

import heapq
from collections import deque
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
import torch

from methods.suffix_counts import CountedText, Pattern, SuffixCounts
from specbench.bounds import Length, Probability, Within
from specbench.decoding.drafter import Drafter, SequenceContext
from specbench.decoding.language_model import TargetOutput
from specbench.decoding.tree import DraftTree
from specbench.decoding.verify import Verification

ROUNDING = 1e-6  # added to a limit before it is cut to a whole number
CERTAIN, NOTHING = np.float32(1), np.float32(0)  # probabilities and scores are float32, as the authors'


class SuffixDraft(NamedTuple):
    """Drafted tokens; the place of each one's parent among them, -1 for the root; and the expected number of accepted tokens."""

    tokens: list[int]
    parents: list[int]
    score: np.float32


NO_DRAFT = SuffixDraft([], [], NOTHING)


class Branch(NamedTuple):
    """A candidate for a draft tree: `token` after a drafted node, or, if null, the drafted node whose followers are wanted.

    depth: drafted tokens down to `state`. parent: the place of the last of them in the draft.
    """

    probability: np.float32
    state: int
    token: int | None
    depth: int
    parent: int

    def __lt__(self, other: tuple[object, ...]) -> bool:
        return bool(self.probability > other[0])  # type: ignore[operator]  # a heap gives the least first


@dataclass
class SuffixState:
    """counts: of prompt and answer; text: both. answer: counted for other requests, too, if these are searched."""

    counts: SuffixCounts
    text: CountedText
    answer: CountedText | None


class SuffixDecoding(Drafter):
    """Drafts what followed a suffix of the last tokens, for the suffix whose draft scores best (section 4).

    A token's probability is its share of what followed the string before it, times that of the drafted tokens before it. A
    draft's score is the sum of these: how many tokens it is expected to get right. Of equal scores the longer suffix wins, and
    the request's own text wins over answers. Counts, float32 and ties are those of ArcticInference's SuffixDecodingCache.

    depth: longest string counted, suffix and draft together. length: most tokens drafted; null: `depth`. factor, offset: at most
    factor * (length of the suffix) + offset tokens are drafted. least_probability: of a drafted token with those before it.
    least_score: weaker drafts are left to another method. tree: draft the most probable nodes, not one chain. cached_requests:
    how many earlier answers are searched, the latest ones; null: all of a repeat; 0: only this request's prompt and answer.
    """

    def __init__(
        self,
        depth: Annotated[int, Within(2, 1024)],
        length: Length | None,
        factor: Annotated[float, Within(0, 1024)],
        offset: Annotated[float, Within(-1024, 1024)],
        least_probability: Probability,
        least_score: Annotated[float, Within(0, 1024)],
        tree: bool,
        cached_requests: Annotated[int, Within(0, 10**9)] | None,
    ) -> None:
        self.depth, self.least_probability, self.least_score = depth, np.float32(least_probability), least_score
        self.cached_requests, self.warm = cached_requests, cached_requests != 0
        self.limits = _compute_limits(depth, depth if length is None else length, factor, offset)
        self.rooms = [min(limit, depth - size) for size, limit in enumerate(self.limits)]
        self.roomiest = max(range(1, depth), key=lambda size: (self.rooms[size], size))  # rooms grow up to there, then shrink
        self.tree, self.nodes = tree, 1 + max(self.limits) if tree else 0
        self.reset()

    def reset(self) -> None:
        self._answers, self._cached = SuffixCounts(self.depth), deque[CountedText]()

    def start(self, prompt: list[int], out: TargetOutput, context: SequenceContext) -> SuffixState:
        state = SuffixState(SuffixCounts(self.depth), CountedText(), self._begin_answer())
        for token in prompt[:-1]:
            state.counts.append(state.text, token)
        self._add(state, prompt[-1:])
        return state

    def _begin_answer(self) -> CountedText | None:
        if self.cached_requests == 0:
            return None
        self._cached.append(CountedText())
        if self.cached_requests is not None and len(self._cached) > self.cached_requests:
            self._answers.remove(self._cached.popleft())
        return self._cached[-1]

    def _add(self, state: SuffixState, tokens: list[int]) -> None:
        for token in tokens:
            state.counts.append(state.text, token)
            if state.answer is not None and state.answer.counted:
                self._answers.append(state.answer, token)

    def draft(self, state: SuffixState, budget: int) -> DraftTree:
        known = state.text.tokens
        if budget == 0:
            return DraftTree.chain(torch.tensor(known[-1:]))
        context = known[max(1, len(known) - self.depth + 1) :]
        own, other = (self._find_draft(counts, context) for counts in (state.counts, self._answers))
        draft = own if own.score >= other.score else other
        if draft.score < self.least_score:
            draft = NO_DRAFT
        if not self.tree:
            return DraftTree.chain(torch.tensor([known[-1], *draft.tokens[:budget]]))
        tokens, parents = _cut_tree(draft, budget)
        return DraftTree.from_lists([known[-1], *tokens], [-1, *parents])

    def _find_draft(self, counts: SuffixCounts, context: list[int]) -> SuffixDraft:
        best = NO_DRAFT
        for pattern in counts.find(context):
            if self.limits[pattern.longest] <= best.score:
                break  # no shorter suffix can score more: no token counts for more than one
            for size in self._list_sizes(pattern):
                draft = (self._grow_tree if self.tree else self._follow_path)(counts, pattern.state, size)
                if draft.score > best.score:
                    best = draft
        return best

    def _list_sizes(self, pattern: Pattern) -> list[int]:
        """Return the lengths of equally frequent suffixes that may draft best: the deepest string counted is shared with them."""
        if not self.tree:
            return [min(max(self.roomiest, pattern.shortest), pattern.longest)]
        sizes = range(pattern.longest, pattern.shortest - 1, -1)
        crowded = [size for size in sizes if self.limits[size] > self.depth - size]
        return [*crowded, *sizes[len(crowded) : len(crowded) + 1]]

    def _follow_path(self, counts: SuffixCounts, state: int, size: int) -> SuffixDraft:
        """Repeatedly draft the most frequent token after a state's strings of a length."""
        tokens: list[int] = []
        probability, score = CERTAIN, NOTHING
        while len(tokens) < self.rooms[size] and (token := counts.find_best(state)) is not None:
            longer = counts.follow(state, token)
            if counts.counts[longer] < counts.counts[state]:
                probability *= np.float32(counts.counts[longer]) / np.float32(counts.counts[state])
                if probability < self.least_probability:
                    break
            tokens.append(token)
            score += probability
            state = longer
        return SuffixDraft(tokens, list(range(-1, len(tokens) - 1)), score)

    def _grow_tree(self, counts: SuffixCounts, state: int, size: int) -> SuffixDraft:
        """Repeatedly draft the most probable node that is left."""
        draft = SuffixDraft([], [], NOTHING)
        branches = [Branch(CERTAIN, state, None, size, -1)]
        while branches and len(draft.tokens) < self.limits[size]:
            branch = heapq.heappop(branches)
            token = self._spread(counts, branch, branches) if branch.token is None else branch.token
            if token is not None:
                draft.tokens.append(token)
                draft.parents.append(branch.parent)
                draft = draft._replace(score=draft.score + branch.probability)
                longer = counts.follow(branch.state, token)
                heapq.heappush(branches, Branch(branch.probability, longer, None, branch.depth + 1, len(draft.tokens) - 1))
        return draft

    def _spread(self, counts: SuffixCounts, branch: Branch, branches: list[Branch]) -> int | None:
        """Return the token that always followed a drafted node; else return null and add branches for all that did."""
        total = counts.counts[branch.state]
        for token in counts.iter_followers(branch.state) if branch.depth < self.depth else ():
            count = counts.counts[counts.follow(branch.state, token)]
            probability = branch.probability * np.float32(count) / np.float32(total)
            if count == total:
                return token
            if probability < self.least_probability:
                break
            heapq.heappush(branches, branch._replace(probability=probability, token=token))
        return None

    def observe(self, state: SuffixState, tree: DraftTree, out: TargetOutput, verified: Verification) -> None:
        self._add(state, verified.tokens)


def _compute_limits(depth: int, length: int, factor: float, offset: float) -> list[int]:
    """Return, by length of the suffix, how many tokens may be drafted."""
    sizes = np.arange(depth, dtype=np.float32) * np.float32(factor) + np.float32(offset)
    return [max(0, min(length, int(size + ROUNDING))) for size in sizes.tolist()]


def _cut_tree(draft: SuffixDraft, budget: int) -> tuple[list[int], list[int]]:
    """Return the tokens and parents, as nodes after the root, of the nodes no deeper than a budget."""
    places = {-1: (0, 0)}  # of a drafted node: its number in the tree, and its depth
    kept = []
    for place, parent in enumerate(draft.parents):
        above = places.get(parent)
        if above and above[1] < budget:
            places[place] = len(places), above[1] + 1
            kept.append((draft.tokens[place], above[0]))
    return [token for token, _ in kept], [parent for _, parent in kept]
