"""Speculative sampling (Leviathan et al. 2023; Chen et al. 2023): a small model drafts, the target verifies."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from specbench.bounds import Length, Probability
from specbench.decoding.drafter import SequenceContext
from specbench.decoding.kv_store import KVStore
from specbench.decoding.language_model import LanguageModel, TargetOutput
from specbench.decoding.tree import DraftTree, Pick
from specbench.decoding.verify import Verification, Verifier
from specbench.drafters.keeping import KeepingDrafter
from specbench.errors import InputError

PADDING = 0.01  # models with one tokenizer may pad their vocabularies differently (Qwen2.5: 151,936 and 152,064 rows)
Schedule = Literal["fixed", "heuristic"]


@dataclass
class DraftState:
    store: KVStore  # the draft model's
    verifier: Verifier
    pending: list[int]  # committed tokens that are not in the store yet, the root last
    length: int  # K, the next draft's length


class SpeculativeSampling(KeepingDrafter[KVStore]):
    """Drafts up to `draft_tokens` tokens with its own language model.

    schedule: `fixed`, or `heuristic` as in transformers: two tokens more after a fully accepted draft, else one less, at least
    one; `draft_tokens` again at every turn. confidence: stop after a less probable token (0: never). stop_at_eos: stop after the
    draft model's end-of-sequence token.
    """

    draws = True

    def __init__(
        self, draft: LanguageModel, draft_tokens: Length, schedule: Schedule, confidence: Probability, stop_at_eos: bool
    ) -> None:
        super().__init__()
        self.model, self.draft_tokens = draft, draft_tokens
        self.schedule, self.confidence, self.stop_at_eos = schedule, confidence, stop_at_eos

    def bind(self, target: LanguageModel) -> None:
        super().bind(target)
        size, expected = self.model.vocabulary, target.vocabulary
        if abs(size - expected) > PADDING * expected:
            raise InputError(f"the draft model has a vocabulary of {size} tokens, the target of {expected}: they must share one")

    def create_store(self, capacity: int) -> KVStore:
        return self.model.create_store(capacity)

    def start_in(self, store: KVStore, prompt: list[int], out: TargetOutput, context: SequenceContext) -> DraftState:
        return DraftState(store, context.verifier, prompt, self.draft_tokens)

    def draft(self, state: DraftState, budget: int) -> DraftTree:
        root, fed = self.to_tensor(state.pending[-1:]), self.to_tensor(state.pending)
        picks: list[Pick] = []
        while len(picks) < min(state.length, budget):
            logits = self._forward(state.store, fed)
            picks.append(state.verifier.pick(logits))
            fed = picks[-1][0]  # (1,)
            if self._should_stop(logits, fed):
                break
        state.pending = [] if picks else state.pending
        return DraftTree.from_picks(root, picks)

    def _forward(self, store: KVStore, fed: Tensor) -> Tensor:
        """Feed tokens to the draft model, which keeps their KV; return the logits (1, V) after them."""
        self.draft_forwards += 1
        known = fed.clamp(max=self.model.vocabulary - 1) if self.model.vocabulary < self.target.vocabulary else fed
        out = self.model.forward(store, [DraftTree.chain(known)], last_only=True)[0]
        store.keep(0, range(len(fed)))
        missing = self.target.vocabulary - self.model.vocabulary  # negative: logits are cut off
        return nn.functional.pad(out.logits, (0, missing), value=-torch.inf) if missing else out.logits

    def _should_stop(self, logits: Tensor, token: Tensor) -> bool:
        if self.confidence and logits.softmax(dim=-1)[0, token] < self.confidence:
            return True
        return self.stop_at_eos and int(token) in self.model.eos_ids

    def observe(self, state: DraftState, tree: DraftTree, out: TargetOutput, verified: Verification) -> None:
        accepted, drafted = len(verified.path) - 1, len(tree) - 1
        if not state.pending:  # the draft was its own; all drafted tokens but the last are in the store
            state.store.rewind(0, state.store.lengths[0] - max(0, drafted - 1 - accepted))
            state.pending = verified.tokens[-2:] if accepted == drafted else verified.tokens[-1:]
            if self.schedule == "heuristic":
                state.length = state.length + 2 if accepted == state.length else max(1, state.length - 1)
        else:
            state.pending = state.pending + verified.tokens
