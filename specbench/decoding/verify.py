"""Verification: which path of the draft tree the target would have written itself."""

from dataclasses import dataclass
from itertools import compress

import torch
from torch import Tensor

from specbench.decoding.tree import DraftTree


@dataclass(frozen=True)
class Verified:
    """path (A+1,): accepted nodes, root first; next_token: recovered after a rejection, else bonus; tokens: what is committed."""

    path: list[int]
    next_token: int
    tokens: list[int]


def verify_greedy(tree: DraftTree, logits: Tensor) -> Verified:
    """The deepest path that follows the target's argmax, the first of equals. logits (N, V); one device-to-host copy."""
    if tree.linear:
        tokens, wanted = torch.stack([tree.tokens, logits.argmax(dim=-1)]).tolist()
        return _along_chain(tokens, wanted)
    wanted = logits.argmax(dim=-1)  # (N,)
    right = tree.tokens == wanted[tree.parents.clamp(min=0)]
    right[0] = True
    if tree.scratch is not None:
        right &= ~tree.scratch
    reached = (right | ~tree.ancestors).all(dim=1)  # all of the way from the root is right
    deepest = torch.where(reached, tree.depths, -1).argmax()
    tokens, next_tokens, on_path = torch.stack([tree.tokens, wanted, tree.ancestors[deepest].long()]).tolist()
    path = list(compress(range(len(tokens)), on_path))
    next_token = next_tokens[path[-1]]
    return Verified(path, next_token, [tokens[node] for node in path[1:]] + [next_token])


def _along_chain(tokens: list[int], wanted: list[int]) -> Verified:
    accepted = 0
    while accepted + 1 < len(tokens) and tokens[accepted + 1] == wanted[accepted]:
        accepted += 1
    return Verified(list(range(accepted + 1)), wanted[accepted], wanted[: accepted + 1])
