"""Verification: which path of the draft tree the target would have written itself."""

from dataclasses import dataclass

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
    """Follow the target's argmax through the tree. logits (N, V); one device-to-host copy."""
    if tree.linear:
        tokens, wanted = torch.stack([tree.tokens, logits.argmax(dim=-1)]).tolist()
        return _along_chain(tokens, wanted)
    tokens, parents, wanted = torch.stack([tree.tokens, tree.parents, logits.argmax(dim=-1)]).tolist()
    scratch = tree.scratch.tolist() if tree.scratch is not None else [False] * len(tokens)
    children: dict[tuple[int, int], int] = {}
    for node in range(1, len(tokens)):
        if not scratch[node]:
            children.setdefault((parents[node], tokens[node]), node)
    path = [0]
    while (child := children.get((path[-1], wanted[path[-1]]))) is not None:
        path.append(child)
    next_token = wanted[path[-1]]
    return Verified(path, next_token, [tokens[node] for node in path[1:]] + [next_token])


def _along_chain(tokens: list[int], wanted: list[int]) -> Verified:
    accepted = 0
    while accepted + 1 < len(tokens) and tokens[accepted + 1] == wanted[accepted]:
        accepted += 1
    return Verified(list(range(accepted + 1)), wanted[accepted], wanted[: accepted + 1])
