"""Autoregressive decoding: the drafter that offers the root alone, so the baseline runs the same loop as every method."""

from specbench.decoding.drafter import Drafter, SequenceContext
from specbench.decoding.language_model import TargetOutput
from specbench.decoding.tree import DraftTree
from specbench.decoding.verify import Verification


class Autoregressive(Drafter):
    """Drafts nothing. Its state is the root, in a list of one."""

    offers = False

    def start(self, prompt: list[int], out: TargetOutput, context: SequenceContext) -> list[int]:
        return prompt[-1:]

    def draft(self, state: list[int], budget: int) -> DraftTree:
        return DraftTree.chain(self.to_tensor(state))

    def observe(self, state: list[int], tree: DraftTree, out: TargetOutput, verified: Verification) -> None:
        state[0] = verified.next_token
