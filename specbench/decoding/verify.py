"""Verification: which path of a draft tree is kept, and which token comes behind it. One verifier per sequence.

Greedy        the path that the target's argmax takes.
Sampled       speculative sampling (Leviathan et al. 2023; Chen et al. 2023): whatever is drafted, the tokens come from the
              target's own distribution at the given temperature, top-k and top-p.
Typical       typical acceptance (Cai et al. 2024, section 2.3.1): lossy, what is likely enough is kept.

A verifier also chooses for drafters that draft from the same distribution with their own logits (`pick`, `rank`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Protocol

import torch
from torch import Tensor

from specbench.decoding.sampling import Dice, Sampling, probabilities
from specbench.decoding.tree import DraftTree, Pick
from specbench.errors import InputError


@dataclass(frozen=True)
class Verification:
    """path (A+1,): accepted nodes, root first; next_token: recovered after a rejection, else bonus; tokens: what is committed."""

    path: list[int]
    next_token: int
    tokens: list[int]


class Verifier(Protocol):
    """How one sequence's tokens are chosen."""

    def choose_first(self, logits: Tensor) -> int:
        """The first token, behind the prompt. logits (V,)."""

    def verify(self, tree: DraftTree, logits: Tensor) -> Verification:
        """logits (N, V) of the tree's nodes."""

    def pick(self, logits: Tensor) -> Pick:
        """A drafter's next token: (1, V) -> (1,), probabilities (1, V)."""

    def rank(self, logits: Tensor, width: int) -> Pick:
        """The children of M nodes in order: (M, V) -> (M, width), probabilities (M, V)."""


class GreedyVerifier:
    def choose_first(self, logits: Tensor) -> int:
        return int(logits.argmax())

    def verify(self, tree: DraftTree, logits: Tensor) -> Verification:
        """The deepest path that follows the target's argmax, the first of equals; one device-to-host copy."""
        if tree.linear:
            tokens, wanted = torch.stack([tree.tokens, logits.argmax(dim=-1)]).tolist()
            return _accept_chain(tokens, wanted)
        wanted = logits.argmax(dim=-1)  # (N,)
        right = tree.tokens == wanted[tree.parents.clamp(min=0)]
        depths = torch.where(_mask_reached(tree, right), tree.depths, -1)
        return _accept_path(tree, depths.argmax(), wanted)

    def pick(self, logits: Tensor) -> Pick:
        return logits.argmax(dim=-1), None

    def rank(self, logits: Tensor, width: int) -> Pick:
        return logits.topk(width).indices, None


GREEDY = GreedyVerifier()


class SamplingVerifier:
    """Only the nodes that the walk comes to are turned into probabilities; a few numbers a node go from device to host."""

    def __init__(self, sampling: Sampling, dice: Dice) -> None:
        self.sampling, self.dice = sampling, dice

    def choose_first(self, logits: Tensor) -> int:
        return int(self.dice.draw(probabilities(logits, self.sampling)))

    def verify(self, tree: DraftTree, logits: Tensor) -> Verification:
        return self._follow(tree, logits) if tree.probs is None else self._test_drawn(tree, tree.probs, logits)

    def pick(self, logits: Tensor) -> Pick:
        weights = probabilities(logits, self.sampling)
        return self.dice.draw(weights[0])[None], weights

    def rank(self, logits: Tensor, width: int) -> Pick:
        weights = probabilities(logits, self.sampling)
        return self.dice.draw_distinct(weights, width), weights

    def _follow(self, tree: DraftTree, logits: Tensor) -> Verification:
        """A deterministic draft: draw what the target says behind each node, and go on where that was drafted.

        A child x is so kept with p(x), and what is drawn when none is has p without the children's tokens, renormalised.
        One draw a committed token, so that the text is what autoregressive decoding writes with the same random numbers.
        """
        tokens, children = tree.tokens.tolist(), tree.children
        here, written = [0], []
        while True:
            written.append(int(self.dice.draw(probabilities(logits[here[0]], self.sampling))))
            further = [child for node in here for child in children[node] if tokens[child] == written[-1]]
            if not further:
                return Verification(_trace_path(tree, here[0]), written[-1], written)
            here = further

    def _test_drawn(self, tree: DraftTree, drawn_from: Tensor, logits: Tensor) -> Verification:
        """A draft drawn from q, siblings without replacement: keep x with min(1, p(x) / q(x)), else go on with the residual.

        The residual is max(p - q, 0), renormalised; q of the next sibling is q without x, renormalised. drawn_from (P, V): q of
        each node that has children, in the order of the nodes.
        """
        tokens, children = tree.tokens.tolist(), tree.children
        rows = {node: row for row, node in enumerate(node for node, under in enumerate(children) if under)}
        path = [0]
        while True:
            wanted = probabilities(logits[path[-1]], self.sampling)
            below = children[path[-1]]
            kept, wanted = self._accept_sibling(below, tokens, wanted, drawn_from[rows[path[-1]]]) if below else (None, wanted)
            if kept is None:
                last = int(self.dice.draw(wanted))
                return Verification(path, last, [tokens[node] for node in path[1:]] + [last])
            path.append(kept)

    def _accept_sibling(
        self, siblings: Sequence[int], tokens: list[int], wanted: Tensor, drawn: Tensor
    ) -> tuple[int | None, Tensor]:
        """The first sibling that is kept, or None; and what the target still wants, (V,)."""
        for node in siblings:
            token = tokens[node]
            p, q, chance = torch.stack([wanted[token].double(), drawn[token].double(), self.dice.draw_uniform()]).tolist()
            if q <= 0:  # never drawn: the tokens before it were all that there are
                continue
            if chance * q < p:
                return node, wanted
            residual = (wanted - drawn).clamp(min=0)
            total = residual.sum()
            wanted = torch.where(total > 0, residual / total, wanted)  # 0 where p = q: rejected by rounding alone
            drawn = drawn.clone()
            drawn[token] = 0
            drawn /= drawn.sum().clamp(min=torch.finfo(drawn.dtype).tiny)
        return None, wanted


class TypicalVerifier:
    """Keep a token whose probability is over min(threshold, alpha exp(-H)), H the entropy; lossy. Nothing is drawn.

    As the authors run it: the longest path, of equal ones the most probable; behind it the argmax. With temperature 0 they verify
    greedily.
    """

    def __init__(self, temperature: float, threshold: float, alpha: float) -> None:
        self.temperature, self.threshold, self.alpha = temperature, threshold, alpha

    def choose_first(self, logits: Tensor) -> int:
        return int(logits.argmax())

    def verify(self, tree: DraftTree, logits: Tensor) -> Verification:
        parents = tree.parents.clamp(min=0)
        inner, rows = parents.unique(return_inverse=True)
        logs = (logits[inner].float() / self.temperature).log_softmax(dim=-1)  # (P, V)
        p = logs.exp()
        entropy = -(p * (p + 1e-5).log()).sum(dim=-1)
        least = (self.alpha * (-entropy).exp()).clamp(max=self.threshold)  # (P,)
        own = logs[rows, tree.tokens]  # (N,) log-probability of each node behind its parent
        own[0] = 0.0
        reached = _mask_reached(tree, own.exp() > least[rows])
        depths = torch.where(reached, tree.depths, -1)
        scores = torch.where(tree.ancestors, own, 0.0).sum(dim=1).masked_fill(depths < depths.max(), -torch.inf)
        return _accept_path(tree, scores.argmax(), logits.argmax(dim=-1))

    def pick(self, logits: Tensor) -> Pick:
        return GREEDY.pick(logits)

    def rank(self, logits: Tensor, width: int) -> Pick:
        return GREEDY.rank(logits, width)


def make_verifier(sampling: Sampling, row: int, device: torch.device) -> Verifier:
    """The lossless verifier of one sequence of a batch."""
    return GREEDY if sampling.temperature == 0 else SamplingVerifier(sampling, Dice(sampling.seed, row, device))


def parse_thresholds(typical: Mapping[str, float]) -> tuple[float, float]:
    """(threshold, alpha) of typical acceptance. Raises InputError."""
    wrong = set(typical) != {"threshold", "alpha"} or not all(
        isinstance(value, (int, float)) and value > 0 for value in typical.values()
    )
    if wrong:
        raise InputError(f"typical={dict(typical)}: expected threshold and alpha, two numbers above 0, or null")
    return typical["threshold"], typical["alpha"]


def _accept_chain(tokens: list[int], wanted: list[int]) -> Verification:
    accepted = 0
    while accepted + 1 < len(tokens) and tokens[accepted + 1] == wanted[accepted]:
        accepted += 1
    return Verification(list(range(accepted + 1)), wanted[accepted], wanted[: accepted + 1])


def _mask_reached(tree: DraftTree, right: Tensor) -> Tensor:
    """(N,) bool: nodes all of whose way from the root is right and may be accepted. right (N,) bool, overwritten at the root."""
    right[0] = True
    if tree.scratch is not None:
        right &= ~tree.scratch
    return (right | ~tree.ancestors).all(dim=1)


def _accept_path(tree: DraftTree, node: Tensor, wanted: Tensor) -> Verification:
    """Accept the way to a node () and what the target wants behind it, wanted (N,); one device-to-host copy."""
    tokens, next_tokens, on_path = torch.stack([tree.tokens, wanted, tree.ancestors[node].long()]).tolist()
    path = list(compress(range(len(tokens)), on_path))
    next_token = next_tokens[path[-1]]
    return Verification(path, next_token, [tokens[node] for node in path[1:]] + [next_token])


def _trace_path(tree: DraftTree, node: int) -> list[int]:
    way, parents = [node], tree.parents.tolist()
    while way[-1]:
        way.append(parents[way[-1]])
    return way[::-1]
