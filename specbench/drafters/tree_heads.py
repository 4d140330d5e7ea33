"""What Medusa and Hydra share: draft heads over a static tree, and optional typical acceptance."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from specbench.bounds import StaticTree
from specbench.decoding.language_model import LanguageModel
from specbench.decoding.sampling import Sampling
from specbench.decoding.tree import DraftTree, TreeShape
from specbench.decoding.tree_batch import fill_shapes, pad_rows
from specbench.decoding.verify import TypicalVerifier, Verifier
from specbench.drafters.network_drafter import NetworkDrafter
from specbench.errors import InputError


class TreeHeads(NetworkDrafter):
    """tree: paths of a static tree; the head of number d drafts the nodes of depth d.

    typical: `threshold` and `alpha` of typical acceptance above temperature 0, which is lossy (Cai et al. 2024, section 2.3.1);
    null: lossless.
    """

    def __init__(self, checkpoint: str | None, tree: StaticTree, dtype: str, typical: Mapping[str, float] | None = None) -> None:
        super().__init__(checkpoint, dtype)
        self.paths = tree["paths"]
        self.typical = None if typical is None else parse_thresholds(typical)
        self.lossless = typical is None

    def bind(self, target: LanguageModel) -> None:
        super().bind(target)
        self.tree = TreeShape(self.paths, target.device, heads=len(self.network))
        self.nodes = len(self.tree)

    def propose(self, states: list[Any], budgets: list[int]) -> list[DraftTree]:
        shapes, roots = [self.tree.cut(budget) for budget in budgets], pad_rows([state.root for state in states])  # (B, 1)
        if not any(shape.depth for shape in shapes):
            return [DraftTree.chain(root) for root in roots]
        tokens = torch.cat([roots, self.draft_tokens(states, budgets)], dim=1)
        trees = fill_shapes(shapes, tokens)
        return [tree if shape.depth else DraftTree.chain(tree.tokens) for tree, shape in zip(trees, shapes, strict=True)]

    def draft_tokens(self, states: list[Any], budgets: list[int]) -> Tensor:
        """Return the tokens of the deepest tree that a budget allows, for every sequence, (B, N - 1): all but the root's.

        states: each with its root (1,).
        """
        raise NotImplementedError

    def verifier(self, sampling: Sampling) -> Verifier:
        if self.typical is None or sampling.temperature == 0:
            return super().verifier(sampling)
        return TypicalVerifier(sampling.temperature, *self.typical)


def parse_thresholds(typical: Mapping[str, float]) -> tuple[float, float]:
    """Return (threshold, alpha) of typical acceptance. Raises InputError."""
    positive = all(isinstance(value, (int, float)) and value > 0 for value in typical.values())
    if set(typical) != {"threshold", "alpha"} or not positive:
        raise InputError(f"typical={dict(typical)}: expected threshold and alpha, two numbers above 0, or null")
    return typical["threshold"], typical["alpha"]
