"""Suffix decoding against a trie that counts every string, and its order of equal counts kept in a plain list."""

import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from methods.suffix import SuffixDecoding, SuffixDraft, SuffixState
from methods.suffix_counts import CountedText, SuffixCounts
from specbench.decoding.language_model import TargetOutput
from tests.tiny import NO_CONTEXT

ONE, ZERO = np.float32(1), np.float32(0)
NOT_READ: Any = None


@dataclass
class Node:
    count: int = 0
    children: dict[int, "Node"] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)  # the children, most frequent first

    def raise_child(self, token: int) -> None:
        child = self.children.setdefault(token, Node())
        if child.count == 0:
            self.order.append(token)
        else:
            place = self.order.index(token)
            left = self.children[self.order[place - 1]].count if place else None
            if left is not None and left <= child.count + 1:
                first = next(i for i, other in enumerate(self.order) if self.children[other].count == left)
                self.order.insert(first, self.order.pop(place))
        child.count += 1

    def lower_child(self, token: int) -> None:
        child = self.children[token]
        self.order.remove(token)
        child.count -= 1
        if child.count == 0:
            del self.children[token]
            return
        lower = (i for i, other in enumerate(self.order) if self.children[other].count <= child.count)
        self.order.insert(next(lower, len(self.order)), token)


class Trie:
    """Every string of at most `depth` tokens that begins somewhere in the texts."""

    def __init__(self, depth: int) -> None:
        self.depth, self.root = depth, Node()

    def find(self, string: list[int]) -> Node | None:
        node: Node | None = self.root
        for token in string:
            node = node.children.get(token) if node else None
        return node

    def append(self, text: list[int], token: int) -> None:
        text.append(token)
        for size in range(min(self.depth, len(text))):
            node = self.find(text[len(text) - 1 - size : -1])
            assert node is not None
            node.raise_child(token)

    def remove(self, text: list[int]) -> None:
        for start in range(len(text)):
            node = self.root
            for token in text[start : start + self.depth]:
                below = node.children[token]
                node.lower_child(token)
                node = below

    def draft(self, context: list[int], method: SuffixDecoding) -> tuple[list[int], np.float32]:
        """Return the chain of the best score, and that score; for trees no tokens, as any of equal probability may be taken."""
        best: tuple[list[int], np.float32] = [], ZERO
        for size in range(1, min(len(context), self.depth)):
            node = self.find(context[-size:])
            if node is None:
                break
            limit = method.limits[size]
            found = ([], spread(node, limit, method)) if method.tree else follow(node, limit, method)
            if found[1] >= best[1]:
                best = found
        return best


def follow(node: Node, limit: int, method: SuffixDecoding) -> tuple[list[int], np.float32]:
    tokens: list[int] = []
    probability, score = ONE, ZERO
    while len(tokens) < limit and node.order:
        child = node.children[node.order[0]]
        probability = probability * (np.float32(child.count) / np.float32(node.count))
        if probability < method.least_probability:
            break
        tokens.append(node.order[0])
        score, node = score + probability, child
    return tokens, score


def spread(node: Node, limit: int, method: SuffixDecoding) -> np.float32:
    score = ZERO
    for probability in sorted(list_probabilities(node, ONE, method.least_probability), reverse=True)[:limit]:
        score += probability
    return score


def list_probabilities(node: Node, probability: np.float32, least: np.float32) -> list[np.float32]:
    found = []
    for child in node.children.values():
        own = probability if child.count == node.count else probability * np.float32(child.count) / np.float32(node.count)
        if own >= least:
            found += [own, *list_probabilities(child, own, least)]
    return found


def check_tree(draft: SuffixDraft, trie: Trie, context: list[int], method: SuffixDecoding) -> None:
    """Every node is a string that occurred after a suffix of the context, and the nodes' probabilities add up to the score."""
    paths: list[tuple[int, ...]] = []
    for token, parent in zip(draft.tokens, draft.parents, strict=True):
        paths.append(((*paths[parent],) if parent >= 0 else ()) + (token,))
    assert len(set(paths)) == len(paths)
    sizes = range(1, min(len(context), trie.depth))
    assert not paths or any(all(trie.find([*context[len(context) - size :], *path]) for path in paths) for size in sizes)


def write(rng: random.Random, tokens: int) -> list[int]:
    motifs = [[rng.randrange(6) for _ in range(rng.randrange(2, 9))] for _ in range(3)]
    text: list[int] = []
    while len(text) < tokens:
        text += rng.choice(motifs) if rng.random() < 0.8 else [rng.randrange(6)]
    return text[:tokens]


@pytest.mark.parametrize("seed", range(24))
def test_drafts_are_those_of_a_trie_that_counts_every_string(seed: int) -> None:
    rng = random.Random(seed)
    depth = rng.choice([2, 3, 5, 8, 24])
    cached = rng.choice([0, 1, 2, None])
    numbers = rng.choice([0.5, 1.0, 1.1, 3.3]), rng.choice([0.0, -1.0, 0.7]), rng.choice([0.1, 0.3, 0.0])
    method = SuffixDecoding(depth, rng.choice([None, 4]), *numbers, least_score=0.0, tree=seed % 2 == 1, cached_requests=cached)
    answers, kept = Trie(depth), list[list[int]]()
    for _ in range(5):
        prompt, answer = write(rng, rng.randrange(1, 40)), write(rng, rng.randrange(1, 40))
        own, text, state = Trie(depth), list[int](), begin(method, [*prompt, answer[0]])
        for token in [*prompt, answer[0]]:
            own.append(text, token)
        if cached != 0:
            kept.append([])
            if cached and len(kept) > cached:
                answers.remove(kept.pop(0))
            answers.append(kept[-1], answer[0])
        for token in answer[1:]:
            context = text[-depth:]
            for counts, trie in ((state.counts, own), (method._answers, answers)):
                draft, (tokens, score) = method._find_draft(counts, context[1:]), trie.draft(context, method)
                assert draft.score == score
                if method.tree:
                    check_tree(draft, trie, context, method)
                else:
                    assert draft.tokens == tokens
            method._add(state, [token])
            own.append(text, token)
            if cached != 0:
                answers.append(kept[-1], token)


def begin(method: SuffixDecoding, tokens: list[int]) -> SuffixState:
    return method.start(tokens, TargetOutput(NOT_READ), NO_CONTEXT)


def build(**changes: Any) -> SuffixDecoding:
    settings = {"depth": 24, "length": None, "factor": 1.0, "offset": 0.0, "least_probability": 0.1, "least_score": 0.0}
    return SuffixDecoding(**{**settings, "tree": False, "cached_requests": None, **changes})


def test_an_earlier_answer_drafts_until_the_repeat_ends() -> None:
    method = build()
    begin(method, [7, 8, 1])
    state = begin(method, [9, 1])
    assert len(method.draft(state, 5)) == 1, "a prompt of another request is not searched"
    method._add(begin(method, [5, 1]), [2, 3])
    method._add(state, [2])
    assert method.draft(state, 5).tokens.tolist() == [2, 3]
    method.reset()
    assert len(method.draft(state, 5)) == 1


def test_a_running_request_whose_answer_is_forgotten_adds_no_more_to_it() -> None:
    method = build(cached_requests=1)
    first = begin(method, [5, 1])
    second = begin(method, [6, 1])
    method._add(first, [2, 3])
    method._add(second, [2])
    assert len(method.draft(second, 5)) == 1


@pytest.mark.parametrize("tree", [False, True])
@pytest.mark.parametrize("budget", [0, 1, 2])
def test_a_draft_is_cut_at_its_budget_and_left_to_others_below_its_least_score(tree: bool, budget: int) -> None:
    motif = [1, 2, 3, 4, 5]
    state = begin(method := build(tree=tree), motif * 2)
    draft = method.draft(state, budget)
    assert draft.depth == budget and draft.tokens.tolist() == [5, 1, 2][: budget + 1]
    strict = build(tree=tree, least_score=100.0)
    assert len(strict.draft(begin(strict, motif * 2), 5)) == 1


def test_an_update_takes_constant_work_on_average() -> None:
    """At most `depth` changes of counts per token, however regular a text is, and at most three transitions."""
    for text in ([1] * 400, write(random.Random(3), 400)):
        counts, counted = SuffixCounts(8), CountedText()
        for token in text:
            before = list(counts.counts)
            counts.append(counted, token)
            assert sum(new != old for new, old in zip(counts.counts, before, strict=False)) <= counts.depth
            assert sum(map(len, counts._next)) <= 3 * len(counted.tokens)
