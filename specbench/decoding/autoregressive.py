"""Autoregressive decoding: the drafter that offers the root alone, so the baseline runs the same loop as every method."""

from torch import Tensor

from specbench.decoding.drafter import Drafter, SequenceContext
from specbench.decoding.language_model import TargetOutput
from specbench.decoding.tree import DraftTree
from specbench.decoding.verify import Verification


class Autoregressive(Drafter):
    """Drafts nothing. Its state is the root (1,), in a list of one."""

    offers = False

    def start(self, prompt: list[int], out: TargetOutput, context: SequenceContext) -> list[Tensor]:
        return [self.to_tensor(prompt[-1:])]

    def draft(self, state: list[Tensor], budget: int) -> DraftTree:
        return DraftTree.chain(state[0])

    def observe(self, state: list[Tensor], tree: DraftTree, out: TargetOutput, verified: Verification) -> None:
        state[0] = verified.token_ids[-1:]
