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
from specbench.decoding.verify import GREEDY, Verification, Verifier
from specbench.drafters.keeping import KeepingDrafter
from specbench.errors import InputError

PADDING = 0.01  # models with one tokenizer may pad their vocabularies differently (Qwen2.5: 151,936 and 152,064 rows)
Schedule = Literal["fixed", "heuristic"]


@dataclass
class DraftState:
    store: KVStore  # the draft model's
    verifier: Verifier
    pending: Tensor  # (n,) committed tokens that are not in the store yet, the root last
    length: int  # K, the next draft's length
    drafted: int = 0  # tokens of its own draft in flight


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
        return DraftState(store, context.verifier, self.to_tensor(prompt), self.draft_tokens)

    def draft(self, state: DraftState, budget: int) -> DraftTree:
        picks: list[Pick] = []
        fed = state.pending
        late = fed.is_cuda and state.verifier is GREEDY  # nothing is drawn for tokens that are dropped, and asking takes long
        while len(picks) < min(state.length, budget):
            logits = self._forward(state.store, fed)
            picks.append(state.verifier.pick(logits))
            fed = picks[-1][0]  # (1,)
            if self._is_unsure(logits, fed) or (self.stop_at_eos and not late and int(fed) in self.model.eos_ids):
                break
        if self.stop_at_eos and late and picks:
            picks = self._cut_at_eos(state.store, picks)
        state.drafted = len(picks)
        return DraftTree.from_picks(state.pending[-1:], picks)

    def _forward(self, store: KVStore, fed: Tensor) -> Tensor:
        """Feed tokens to the draft model, which keeps their KV; return the logits (1, V) after them."""
        self.draft_forwards += 1
        known = fed.clamp(max=self.model.vocabulary - 1) if self.model.vocabulary < self.target.vocabulary else fed
        out = self.model.forward(store, [DraftTree.chain(known)], last_only=True)[0]
        store.keep(0, range(len(fed)))
        missing = self.target.vocabulary - self.model.vocabulary  # negative: logits are cut off
        return nn.functional.pad(out.logits, (0, missing), value=-torch.inf) if missing else out.logits

    def _is_unsure(self, logits: Tensor, token: Tensor) -> bool:
        return self.confidence > 0 and bool(logits.softmax(dim=-1).index_select(1, token) < self.confidence)

    def _cut_at_eos(self, store: KVStore, picks: list[Pick]) -> list[Pick]:
        """Drop what was drafted after an end-of-sequence token, and do not count it; one copy for all tokens."""
        tokens = torch.cat([token for token, _ in picks]).tolist()
        kept = next((place for place, token in enumerate(tokens, start=1) if token in self.model.eos_ids), len(tokens))
        store.rewind(0, store.lengths[0] - (len(tokens) - kept))
        self.draft_forwards -= len(tokens) - kept
        return picks[:kept]

    def observe(self, state: DraftState, tree: DraftTree, out: TargetOutput, verified: Verification) -> None:
        accepted, drafted = len(verified.path) - 1, state.drafted
        if not drafted:
            state.pending = torch.cat([state.pending, verified.token_ids])
            return
        state.store.rewind(0, state.store.lengths[0] - max(0, drafted - 1 - accepted))  # it has all but the last of the draft
        state.pending = verified.token_ids[-2:] if accepted == drafted else verified.token_ids[-1:]
        state.drafted = 0
        if self.schedule == "heuristic":
            state.length = state.length + 2 if accepted == state.length else max(1, state.length - 1)
