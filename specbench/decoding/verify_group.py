"""Verification of a group: what all sequences need from the device is computed and copied at once."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import chain

import torch
from torch import Tensor

from specbench.decoding.tree import DraftTree, Pick
from specbench.decoding.verify import GREEDY, Conclude, GreedyVerifier, Verification, Verifier, examine_greedy
from specbench.machine.devices import upload


def upload_group(group: Sequence[Verification]) -> list[Verification]:
    """Bring the paths and tokens of a group to the device in one copy."""
    if len(group) == 1:
        return list(group)  # some drafters need none of it there
    numbers = [one.numbers for one in group]
    parts = torch.split(upload(torch.tensor(list(chain.from_iterable(numbers))), group[0].device), list(map(len, numbers)))
    return [replace(one, copied=part) for one, part in zip(group, parts, strict=True)]


def examine_group(verifiers: Sequence[Verifier], trees: Sequence[DraftTree], logits: Sequence[Tensor]) -> list[Conclude]:
    """Return a function per draft that verifies it or raises ArithmeticError; all greedy ones share one copy to the host."""
    rows = list(zip(verifiers, trees, logits, strict=True))
    greedy = [(one, tree, own) for one, tree, own in rows if isinstance(one, GreedyVerifier)]
    concluding = iter(examine_greedy(greedy) if greedy else ())
    return [next(concluding) if isinstance(one, GreedyVerifier) else partial(one.verify, tree, own) for one, tree, own in rows]


def pick_group(verifiers: Sequence[Verifier], logits: Tensor) -> list[Pick]:
    """Choose each sequence's next draft token as its verifier's `pick` does. logits (B, V)."""
    if all(verifier is GREEDY for verifier in verifiers):
        return [(token, None) for token in torch.split(GREEDY.pick(logits)[0], 1)]
    return [verifier.pick(row) for verifier, row in zip(verifiers, torch.split(logits, 1), strict=True)]


def rank_group(verifiers: Sequence[Verifier], logits: Tensor, width: int, drafting: Sequence[bool]) -> Pick:
    """Choose the children of M nodes in each of B trees as their verifiers' `rank` does; nothing is drawn where none drafts.

    logits (B, M, V) -> tokens (B, M, width), probabilities (B, M, V).
    """
    if all(verifier is GREEDY for verifier in verifiers):
        return GREEDY.rank(logits, width)
    nothing = torch.zeros_like(logits[0, :, :1], dtype=torch.long).expand(-1, width), torch.zeros_like(logits[0]).float()
    ranked = [one.rank(row, width) if on else nothing for one, row, on in zip(verifiers, logits, drafting, strict=True)]
    return torch.stack([tokens for tokens, _ in ranked]), torch.stack([q for _, q in ranked if q is not None])
