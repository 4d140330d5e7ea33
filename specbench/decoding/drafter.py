"""The base class of all drafters: implement `start`, `draft` and `observe` per sequence, or `begin`, `propose` and `update`."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from specbench.decoding.kv_store import KVStore
from specbench.decoding.language_model import LanguageModel, TargetOutput
from specbench.decoding.sampling import Sampling
from specbench.decoding.tree import DraftTree
from specbench.decoding.tree_batch import bring_trees
from specbench.decoding.verify import Verification, Verifier, make_verifier
from specbench.machine.devices import upload


@dataclass
class DraftWork:
    """The cost of drafting for one sequence so far. forwards: those of the drafter's own model that drafted for it."""

    forwards: int = 0


@dataclass(frozen=True)
class SequenceContext:
    """What a drafter may use of a prefilled sequence, besides its tokens and the target's output.

    past: the target's keys and values, for methods that draft over them. verifier: how the sequence's tokens are chosen, for
    methods that draw their drafts the same way. work: where the drafter counts its forwards.
    """

    past: KVStore
    verifier: Verifier
    work: DraftWork = field(default_factory=DraftWork)


class Drafter:
    """Proposes draft trees. Everything about a sequence is kept in its state, or in the row of its place in the batch.

    The loop calls `begin` after the prefill, then `propose` and `update` in every step, and `retain` when sequences have ended.
    """

    taps: tuple[int, ...] = ()  # hidden states of the target to read, by absolute layer number
    prompt_logits: bool = False  # `start` needs the target's logits of every prompt token
    nodes: int = 0  # of the largest branched tree, root included; chains never exceed their budget and need no extra room
    draws: bool = False  # above temperature 0, drafts are drawn from the drafter's own distribution, given in the trees
    warm: bool = False  # something that it learns outlives a turn; `reset` clears it at the start of each repeat
    lossless: bool = True  # the output distribution is the target's
    parts: tuple["Drafter", ...] = ()  # the drafters that this one combines
    offers: bool = True  # it offers drafts; the baseline offers the root alone

    def iter_family(self) -> Iterator["Drafter"]:
        """Yield this drafter and all its parts, recursively."""
        yield self
        for part in self.parts:
            yield from part.iter_family()

    def list_models(self) -> list[LanguageModel]:
        """Return the language models that this drafter and its parts draft with, loaded or made of the target's layers."""
        models = (getattr(part, "model", None) for part in self.iter_family())
        return [model for model in models if isinstance(model, LanguageModel)]

    def bind(self, target: LanguageModel) -> None:
        """Attach the target; called once, before anything else."""
        self.target = target

    def reset(self) -> None:
        """Clear what outlives a turn; called at the start of each repeat."""

    def prepare(self, prompts: list[Tensor], samplings: list[Sampling], capacity: int) -> None:
        """Preallocate for sequences (prompt and answer) of at most `capacity` tokens; called before the clock starts."""

    def verifier(self, sampling: Sampling) -> Verifier:
        """Return the verifier of one sequence; lossy methods override it."""
        return make_verifier(sampling, self.target.device)

    def begin(self, prompts: list[list[int]], outs: list[TargetOutput], contexts: list[SequenceContext]) -> list[Any]:
        """Return the states of prefilled sequences; each prompt ends with the first committed token, the root."""
        return [self.start(*sequence) for sequence in zip(prompts, outs, contexts, strict=True)]

    def propose(self, states: list[Any], budgets: list[int]) -> list[DraftTree]:
        """Return one tree per sequence, none deeper than its budget. A sequence with budget 0 waits for the others."""
        trees = [self.draft(state, budget) for state, budget in zip(states, budgets, strict=True)]
        return bring_trees(trees, self.target.device)

    def update(self, states: list[Any], trees: list[DraftTree], outs: list[TargetOutput], verified: list[Verification]) -> None:
        """Pass the target's output and the verification of each sequence that has not ended to `observe`."""
        for step in zip(states, trees, outs, verified, strict=True):
            self.observe(*step)

    def retain(self, places: list[int]) -> None:
        """Keep only the sequences at these places of the batch: the others have ended. Called between steps."""

    def start(self, prompt: list[int], out: TargetOutput, context: SequenceContext) -> Any:
        """Return the state of a new sequence. prompt: ids of the prompt, then the root, which the target has just chosen.

        out: of the prefill: logits (1, V), or (T, V) with `prompt_logits`; hidden (T, taps * H).
        """
        raise NotImplementedError

    def draft(self, state: Any, budget: int) -> DraftTree:
        """Return a tree whose root is the last committed token, on the host or on the device.

        budget: greatest depth; 0 allows only the root.
        """
        raise NotImplementedError

    def observe(self, state: Any, tree: DraftTree, out: TargetOutput, verified: Verification) -> None:
        """Update the state from the target's output for the tree, logits (N, V) and hidden (N, taps * H), and the accepted path.

        verified.tokens follow the old root; the last of them is the next root. verified.path_ids and token_ids are on the device.
        In a method of several parts the tree may come from another part.
        """
        raise NotImplementedError

    def to_tensor(self, tokens: list[int]) -> Tensor:
        """Return token ids as a tensor on the target's device."""
        return upload(torch.tensor(tokens), self.target.device)
