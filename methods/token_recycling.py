"""Token Recycling (Luo et al. 2024): draft, after each token, those that the target ranked best when it last read that token.

A matrix holds `width` successors per token, taken from the logits of all nodes of all draft trees, accepted or not. It fills a
static tree level by level.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from specbench.bounds import StaticTree
from specbench.decoding.drafter import Drafter, SequenceContext
from specbench.decoding.language_model import LanguageModel, TargetOutput
from specbench.decoding.tree import DraftTree, TreeShape
from specbench.decoding.verify import Verification


@dataclass
class RecyclingState:
    """matrix (V, width): each token's successors, the most probable first; 0 where nothing is known yet. root (1,)."""

    matrix: Tensor
    root: Tensor


class TokenRecycling(Drafter):
    """tree: paths of a static tree. prompt_logits: fill the matrix from the prompt's logits too.

    warm: the matrix outlives a turn, as in the authors' code; else every turn starts with an empty one.
    """

    def __init__(self, tree: StaticTree, warm: bool, prompt_logits: bool) -> None:
        self.paths, self.warm, self.prompt_logits = tree["paths"], warm, prompt_logits

    def bind(self, target: LanguageModel) -> None:
        super().bind(target)
        self.tree = TreeShape(self.paths, target.device)
        self.nodes = len(self.tree)
        self.reset()

    def reset(self) -> None:
        if self.warm:
            self._kept = self._create_matrix()

    def _create_matrix(self) -> Tensor:
        return torch.zeros(self.target.vocabulary, self.tree.width, dtype=torch.long, device=self.target.device)

    def start(self, prompt: list[int], out: TargetOutput, context: SequenceContext) -> RecyclingState:
        state = RecyclingState(self._kept if self.warm else self._create_matrix(), self.to_tensor(prompt[-1:]))
        read = prompt[:-1] if self.prompt_logits else prompt[-2:-1]  # the tokens whose logits the prefill returned
        self._recycle(state.matrix, self.to_tensor(read), out.logits[-len(read) :])
        return state

    def draft(self, state: RecyclingState, budget: int) -> DraftTree:
        shape = self.tree.cut(budget)
        above, drafted = state.root, [state.root]
        for level in shape.levels:
            tokens = state.matrix[above[level.rows], level.ranks]
            above = tokens[level.expanded]
            drafted.append(tokens)
        return shape.build_tree(torch.cat(drafted))

    def observe(self, state: RecyclingState, tree: DraftTree, out: TargetOutput, verified: Verification) -> None:
        self._recycle(state.matrix, tree.tokens, out.logits)
        state.root = verified.token_ids[-1:]

    def _recycle(self, matrix: Tensor, tokens: Tensor, logits: Tensor) -> None:
        """Set the successors of tokens (N,) from the logits (N, V) after them; of equal tokens the last one counts."""
        best = logits.topk(self.tree.width).indices  # (N, width)
        places = torch.arange(len(tokens), device=tokens.device)
        last = places.new_zeros(len(matrix)).scatter_reduce_(0, tokens, places, "amax")
        matrix[tokens] = best[last[tokens]]
