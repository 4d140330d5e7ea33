"""Verification: choose the path of a draft tree that is kept and the token after it. Each sequence has one verifier.

Greedy    follow the target's argmax.
Sampled   speculative sampling (Leviathan et al. 2023; Chen et al. 2023): whatever is drafted, the tokens follow the target's
          own distribution at the given temperature, top-k and top-p.
Typical   typical acceptance (Cai et al. 2024, section 2.3.1): keep what is likely enough; lossy.

p is the target's distribution, q the one that a draft token was drawn from. A verifier also picks tokens for drafters that draft
with their own logits in the same way (`pick`, `rank`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate, compress
from math import isfinite
from typing import Protocol

import torch
from torch import Tensor

from specbench.decoding.largest import find_largest
from specbench.decoding.sampling import Dice, Sampling, probabilities
from specbench.decoding.tree import DraftTree, Pick
from specbench.machine.devices import upload

CPU = torch.device("cpu")
Conclude = Callable[[], "Verification"]


@dataclass(frozen=True)
class Verification:
    """The result of verifying one draft tree.

    An *accepted* token is a draft token that is kept. The token after the accepted ones is *recovered* if it replaces a rejected
    draft token, and the *bonus* token if the path was accepted to its end.
    """

    path: list[int]  # (A,) nodes, the root and the accepted ones
    next_token: int  # recovered or bonus token: the next root
    tokens: list[int]  # (A,) committed: the accepted tokens, then next_token
    device: torch.device = CPU  # of the tree
    copied: Tensor | None = None  # the numbers on the device, if they were brought there with others

    @property
    def numbers(self) -> list[int]:
        """(2 A,): the path, then the tokens."""
        return [*self.path, *self.tokens]

    @cached_property
    def _ids(self) -> Tensor:
        return upload(torch.tensor(self.numbers), self.device) if self.copied is None else self.copied

    @property
    def path_ids(self) -> Tensor:
        """The path on the device, (A,) int64; copied together with the tokens."""
        return self._ids[: len(self.path)]

    @property
    def token_ids(self) -> Tensor:
        """The committed tokens on the device, (A,) int64."""
        return self._ids[len(self.path) :]

    @property
    def branches(self) -> bool:
        """Whether the path leaves the first nodes, which a chain never does."""
        return self.path[-1] != len(self.path) - 1


class Verifier(Protocol):
    """Chooses the tokens of one sequence."""

    def choose_first(self, logits: Tensor) -> int:
        """Choose the first token after the prompt. logits (V,)."""

    def verify(self, tree: DraftTree, logits: Tensor) -> Verification:
        """Choose the accepted path and the token after it. logits (N, V) of the tree's nodes."""

    def pick(self, logits: Tensor) -> Pick:
        """Choose a drafter's next token: logits (1, V) -> tokens (1,), probabilities (1, V)."""

    def rank(self, logits: Tensor, width: int) -> Pick:
        """Choose the children of M nodes, in order: logits (M, V) -> tokens (M, width), probabilities (M, V)."""


class GreedyVerifier:
    """Accepts a draft token x_i if x_i = argmax p(. | x_<i)."""

    def choose_first(self, logits: Tensor) -> int:
        best, largest = torch.stack(choose_best(logits)).tolist()
        _check_finite(isfinite(largest))
        return int(best)

    def verify(self, tree: DraftTree, logits: Tensor) -> Verification:
        """Accept the deepest path that follows the argmax, the first one among equals; one device-to-host copy."""
        (conclude,) = examine_greedy([(self, tree, logits)])
        return conclude()

    def mark_path(self, tree: DraftTree, logits: Tensor, best: Tensor) -> Tensor | None:
        """Return which nodes are accepted, (N,) bool; None of a chain, whose tokens the host compares. best (N,): the argmax."""
        if tree.linear:
            return None
        right = tree.tokens == best[tree.parents.clamp(min=0)]  # x_i = argmax p(. | x_<i)
        depths = torch.where(_mask_reached(tree, right), tree.depths, -1)
        return _mark_ancestors(tree, depths.argmax())

    def conclude(self, tree: DraftTree, examined: Sequence[list[float]], marked: bool) -> Verification:
        """Return the accepted path and the target's choice after it.

        examined: of each node its token, the argmax after it and the maximum; then, if `marked`, whether it is accepted.
        """
        _check_finite(all(map(isfinite, examined[2])))
        tokens, choices = ([int(number) for number in row] for row in examined[:2])
        if not marked:
            return _accept_chain(tree, tokens, choices)
        path = list(compress(range(len(tokens)), examined[3]))
        next_token = choices[path[-1]]
        return Verification(path, next_token, [tokens[node] for node in path[1:]] + [next_token], tree.tokens.device)

    def pick(self, logits: Tensor) -> Pick:
        return find_largest(logits)[1], None

    def rank(self, logits: Tensor, width: int) -> Pick:
        return logits.topk(width).indices, None


GREEDY = GreedyVerifier()


class SamplingVerifier:
    """Speculative sampling. Computes p only for the nodes it visits; a few numbers per node are copied to the host."""

    def __init__(self, sampling: Sampling, dice: Dice) -> None:
        self.sampling, self.dice = sampling, dice

    def choose_first(self, logits: Tensor) -> int:
        return self._draw(probabilities(logits, self.sampling))

    def verify(self, tree: DraftTree, logits: Tensor) -> Verification:
        return self._follow(tree, logits) if tree.probs is None else self._test_drawn(tree, tree.probs, logits)

    def pick(self, logits: Tensor) -> Pick:
        q = probabilities(logits, self.sampling)
        return self.dice.draw(q[0])[None], q

    def rank(self, logits: Tensor, width: int) -> Pick:
        q = probabilities(logits, self.sampling)
        return self.dice.draw_distinct(q, width), q

    def _follow(self, tree: DraftTree, logits: Tensor) -> Verification:
        """Verify a deterministic draft: draw x ~ p after each node and continue with the children whose token is x.

        A child x is accepted with probability p(x); a recovered token follows p without the children's tokens, renormalised.
        Each committed token takes one draw, so the text equals autoregressive decoding's with the same random numbers.
        """
        tokens, children = tree.tokens.tolist(), tree.children
        nodes, committed = [0], []
        while True:
            x = self._draw(probabilities(logits[nodes[0]], self.sampling))  # x ~ p: a child x (q = 1) is kept with p(x)
            committed.append(x)
            matching = [child for node in nodes for child in children[node] if tokens[child] == x]
            if not matching:
                return Verification(_trace_path(children, nodes[0]), x, committed, tree.tokens.device)
            nodes = matching

    def _test_drawn(self, tree: DraftTree, drawn_from: Tensor, logits: Tensor) -> Verification:
        """Verify a draft drawn from q, siblings without replacement. drawn_from (P, V): q of the nodes with children."""
        tokens, children = tree.tokens.tolist(), tree.children
        inner = [node for node, below in enumerate(children) if below]
        rows = {node: row for row, node in enumerate(inner)}
        path = [0]
        while True:
            p = probabilities(logits[path[-1]], self.sampling)
            siblings = children[path[-1]]
            kept, p = self._accept_sibling(siblings, tokens, p, drawn_from[rows[path[-1]]]) if siblings else (None, p)
            if kept is None:
                next_token = self._draw(p)  # recovered: p is the residual; bonus: p is the target's own
                committed = [*(tokens[node] for node in path[1:]), next_token]
                return Verification(path, next_token, committed, tree.tokens.device)
            path.append(kept)

    def _draw(self, p: Tensor) -> int:
        """Draw x ~ p (V,), whose sum, the softmax's normaliser, is a number if all logits were."""
        token, total = torch.stack([self.dice.draw(p).double(), p.sum(dtype=torch.float64)]).tolist()
        _check_finite(total == total)
        return int(token)

    def _accept_sibling(
        self, siblings: Sequence[int], tokens: list[int], target: Tensor, drawn: Tensor
    ) -> tuple[int | None, Tensor]:
        """Return the first sibling accepted, or None, and p or what is left of it after the rejections; (V,) each."""
        for node in siblings:
            x = tokens[node]
            p, q, chance = torch.stack([target[x].double(), drawn[x].double(), self.dice.draw_uniform()]).tolist()
            _check_finite(p == p and q == q)
            if q <= 0:  # never drawn: the siblings before it were all tokens with q > 0
                continue
            if chance * q < p:  # p >= q: always accept; p < q: accept with probability p / q
                return node, target
            residual = (target - drawn).clamp(min=0)  # rejected: p <- max(p - q, 0) / sum(max(p - q, 0))
            total = residual.sum()
            target = torch.where(total > 0, residual / total, target)  # the sum is 0 if p = q was rejected by rounding
            drawn = drawn.clone()  # without replacement: q <- q without x, renormalised
            drawn[x] = 0
            drawn /= drawn.sum().clamp(min=torch.finfo(drawn.dtype).tiny)
        return None, target


class TypicalVerifier(GreedyVerifier):
    """Typical acceptance: accept x if p(x) > min(threshold, alpha * exp(-H(p))), H the entropy. Lossy; nothing is drawn.

    As in the authors' code: the longest path, among equal ones the most probable; then the argmax. At temperature 0 they
    verify greedily.
    """

    def __init__(self, temperature: float, threshold: float, alpha: float) -> None:
        self.temperature, self.threshold, self.alpha = temperature, threshold, alpha

    def mark_path(self, tree: DraftTree, logits: Tensor, best: Tensor) -> Tensor | None:
        parents = tree.parents.clamp(min=0)
        inner, rows = torch.unique(parents, return_inverse=True)
        log_p = (logits[inner].float() / self.temperature).log_softmax(dim=-1)  # (P, V)
        p = log_p.exp()
        entropy = -(p * (p + 1e-5).log()).sum(dim=-1)
        bound = (self.alpha * (-entropy).exp()).clamp(max=self.threshold)  # (P,) min(threshold, alpha * exp(-H))
        scores = log_p[rows, tree.tokens]  # (N,) log p(x) of each node given its parent
        scores[0] = 0.0
        reached = _mask_reached(tree, scores.exp() > bound[rows])  # accept x if p(x) > bound
        depths = torch.where(reached, tree.depths, -1)
        totals = torch.where(tree.ancestors, scores, 0.0).sum(dim=1).masked_fill(depths < depths.max(), -torch.inf)
        return _mark_ancestors(tree, totals.argmax())


def make_verifier(sampling: Sampling, device: torch.device) -> Verifier:
    """Return the lossless verifier of one sequence."""
    return GREEDY if sampling.temperature == 0 else SamplingVerifier(sampling, Dice(sampling.seed, device))


def examine_greedy(rows: Sequence[tuple[GreedyVerifier, DraftTree, Tensor]]) -> Iterator[Conclude]:
    """Yield what concludes each draft. Integers stay below 2^24, so that float32 holds them."""
    sizes = [len(tree) for _, tree, _ in rows]
    best, largest = choose_best(_join([logits for _, _, logits in rows]))  # of all nodes at once
    chosen = [best] if len(rows) == 1 else torch.split(best, sizes)
    marks = [one.mark_path(tree, logits, own) for (one, tree, logits), own in zip(rows, chosen, strict=True)]
    columns = [_join([tree.tokens for _, tree, _ in rows]), best, largest]
    if any(marked is not None for marked in marks):
        columns.append(_join([torch.ones_like(own) if mark is None else mark for mark, own in zip(marks, chosen, strict=True)]))
    host = torch.stack(columns).tolist()
    ends = list(accumulate(sizes))
    for (one, tree, _), mark, size, end in zip(rows, marks, sizes, ends, strict=True):
        yield partial(one.conclude, tree, [column[end - size : end] for column in host], mark is not None)


def _join(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _accept_chain(tree: DraftTree, tokens: list[int], choices: list[int]) -> Verification:
    """tokens: of the chain, the root first; choices: the argmax after each."""
    accepted = 0
    while accepted + 1 < len(tokens) and tokens[accepted + 1] == choices[accepted]:  # x_i = argmax p(. | x_<i)
        accepted += 1
    return Verification(list(range(accepted + 1)), choices[accepted], choices[: accepted + 1], tree.tokens.device)


def _mask_reached(tree: DraftTree, right: Tensor) -> Tensor:
    """(N,) bool: nodes whose whole path is right and not scratch. right (N,) bool, overwritten at the root."""
    right[0] = True
    if tree.scratch is not None:
        right &= ~tree.scratch
    return (right | ~tree.ancestors).all(dim=1)


def choose_best(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(..., V) -> the argmax, the first of equals, and the maximum in float32, (...) each.

    NaN and +inf win every maximum; -inf, a forbidden token, wins none unless all are forbidden.
    """
    largest, best = find_largest(logits)
    return best, largest.float()


def _check_finite(finite: bool) -> None:
    """Raise ArithmeticError unless the logits are finite."""
    if not finite:
        raise ArithmeticError("logits are not finite numbers")


def _mark_ancestors(tree: DraftTree, node: Tensor) -> Tensor:
    """Return (N,) bool: which nodes lead to a node ()."""
    return tree.ancestors.index_select(0, node[None])[0]


def _trace_path(children: list[list[int]], node: int) -> list[int]:
    """Return the nodes from the root to a node."""
    parents = {child: parent for parent, below in enumerate(children) for child in below}
    path = [node]
    while path[-1]:
        path.append(parents[path[-1]])
    return path[::-1]
