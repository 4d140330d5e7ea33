"""The base class of every method's drafter: write `start`, `draft` and `observe` for one sequence, or the batched three."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from specbench.decoding.kv_store import KVStore
from specbench.decoding.language_model import LanguageModel, TargetOutput
from specbench.decoding.sampling import Sampling
from specbench.decoding.tree import DraftTree
from specbench.decoding.verify import Verification, Verifier, make_verifier


@dataclass(frozen=True)
class SequenceContext:
    """What a drafter gets of a prefilled sequence beside its tokens and the target's output.

    past: its keys and values in the target, for methods that draft over them; verifier: how its tokens are chosen, for methods
    that draw theirs the same way.
    """

    past: KVStore
    verifier: Verifier


class Drafter:
    """Proposes draft trees. All that belongs to a sequence, its own KV too, lives in that sequence's state."""

    taps: tuple[int, ...] = ()  # hidden states of the target it reads, by absolute layer number
    prompt_logits: bool = False  # whether `start` wants the target's logits of every prompt token
    nodes: int = (
        0  # of the largest branched tree, root included; a chain is never deeper than its budget and needs no room of its own
    )
    draws: bool = False  # above temperature 0 its drafts are drawn from a distribution of its own, and its trees say which
    warm: bool = False  # what it learns outlives a turn; `reset` forgets it at the start of each repeat
    lossless: bool = True  # whether its text is claimed to be the target's own
    parts: tuple["Drafter", ...] = ()  # the drafters that it is made of
    draft_forwards: int = 0  # forwards of a model of its own since the start of the turn, for all sequences of a batch

    def iter_family(self) -> Iterator["Drafter"]:
        """Itself and all that it is made of."""
        yield self
        for part in self.parts:
            yield from part.iter_family()

    def bind(self, target: LanguageModel) -> None:
        """Meet the target; called once, before anything else."""
        self.target = target

    def reset(self) -> None:
        """Forget what outlives a turn; called at the start of each repeat."""

    def prepare(self, prompts: list[Tensor], sampling: Sampling, capacity: int) -> None:
        """Before the clock of a turn runs: preallocate for sequences (prompt and answer) of at most `capacity` tokens."""

    def verifier(self, sampling: Sampling, row: int) -> Verifier:
        """How the tokens of one sequence of the batch are chosen; a lossy method has its own way."""
        return make_verifier(sampling, row, self.target.device)

    def begin(self, prompts: list[list[int]], outs: list[TargetOutput], contexts: list[SequenceContext]) -> list[Any]:
        """New states for sequences whose prompt is prefilled; each prompt ends with the first committed token, the root."""
        return [self.start(*given) for given in zip(prompts, outs, contexts, strict=True)]

    def propose(self, states: list[Any], budgets: list[int]) -> list[DraftTree]:
        """One tree per sequence, none deeper than its budget."""
        return [self.draft(state, budget) for state, budget in zip(states, budgets, strict=True)]

    def update(self, states: list[Any], trees: list[DraftTree], outs: list[TargetOutput], verified: list[Verification]) -> None:
        """Learn what the target made of the trees."""
        for state, tree, out, choice in zip(states, trees, outs, verified, strict=True):
            self.observe(state, tree, out, choice)

    def start(self, prompt: list[int], out: TargetOutput, context: SequenceContext) -> Any:
        """The state of a new sequence. prompt: ids of the prompt and, last, the root, which the target has just written.

        out: the prefill's: logits (1, V), or (T, V) with `prompt_logits`; hidden (T, taps * H) with `taps`.
        """
        raise NotImplementedError

    def draft(self, state: Any, budget: int) -> DraftTree:
        """A tree whose root is the last committed token. budget: its greatest depth, 0 where only the root may come."""
        raise NotImplementedError

    def observe(self, state: Any, tree: DraftTree, out: TargetOutput, verified: Verification) -> None:
        """What the target made of the tree: logits (N, V) and hidden states of its nodes; the path and what was committed.

        In a method of several parts the tree may be another's.
        verified.tokens are the committed tokens after the old root; the last of them is the next root.
        """
        raise NotImplementedError

    def to_tensor(self, tokens: list[int]) -> Tensor:
        """Token ids on the target's device."""
        return torch.tensor(tokens, device=self.target.device)
