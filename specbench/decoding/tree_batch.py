"""Draft trees of a batch: padded, copied and queried together."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from specbench.decoding.tree import DraftTree, TreeShape
from specbench.machine.devices import upload


def pad_rows(rows: Sequence[Tensor]) -> Tensor:
    """Stack rows (n, ...) of different lengths -> (B, N, ...), with zeros after their ends."""
    if len(rows) == 1:
        return rows[0][None]
    alike = len({len(row) for row in rows}) == 1
    return torch.stack(list(rows)) if alike else nn.utils.rnn.pad_sequence(list(rows), batch_first=True)


def stack_ancestors(trees: Sequence[DraftTree]) -> Tensor:
    """Return the trees' ancestors as (B, N, N) bool, N nodes in the largest tree; a node of padding sees itself at least."""
    first, nodes = trees[0], max(map(len, trees))
    if all(tree.linear for tree in trees) or all(tree.shape is not None and tree.shape is first.shape for tree in trees):
        largest = max(trees, key=len)
        return largest.ancestors.repeat(len(trees), 1, 1)
    stacked = torch.eye(nodes, dtype=torch.bool, device=first.tokens.device).repeat(len(trees), 1, 1)
    for row, tree in enumerate(trees):
        stacked[row, : len(tree), : len(tree)] = tree.ancestors
    return stacked


def bring_trees(trees: Sequence[DraftTree], device: torch.device) -> list[DraftTree]:
    """Copy the trees that were made on the host to the device of the target, all in one copy."""
    away = [device.type != "cpu" and tree.tokens.device.type == "cpu" for tree in trees]
    packed = [tree.pack() for tree, off in zip(trees, away, strict=True) if off]
    if not packed:
        return list(trees)
    parts = iter(torch.split(upload(torch.cat(packed), device), [len(part) for part in packed]))
    return [tree.unpack(next(parts)) if off else tree for tree, off in zip(trees, away, strict=True)]


def read_depths(trees: Sequence[DraftTree]) -> list[int]:
    """Return how deep each tree is; depths that only the device knows come in one copy."""
    asked = [tree.find_depth() for tree in trees if not tree.knows_depth]
    answers = iter(torch.stack(asked).tolist() if asked else ())
    return [tree.depth if tree.knows_depth else next(answers) for tree in trees]


def fill_shapes(shapes: Sequence[TreeShape], tokens: Tensor, probs: Tensor | None = None) -> list[DraftTree]:
    """Fill cuts of one static tree, each with the start of its row. tokens (B, N) of the deepest one, probs (B, P, V)."""
    return [
        shape.build_tree(tokens[row, : len(shape)], None if probs is None else probs[row, : shape.inner])
        for row, shape in enumerate(shapes)
    ]
