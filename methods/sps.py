"""Speculative sampling (Leviathan et al. 2023; Chen et al. 2023): a small model drafts, the target verifies."""

from collections.abc import Collection
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import torch
from torch import Tensor, nn

from specbench.bounds import Length, Probability
from specbench.decoding.drafter import DraftWork, SequenceContext
from specbench.decoding.kv_store import KVStore
from specbench.decoding.language_model import LanguageModel, TargetOutput
from specbench.decoding.tree import DraftTree, Pick
from specbench.decoding.tree_batch import pad_rows
from specbench.decoding.verify import GREEDY, Verification, Verifier
from specbench.decoding.verify_group import pick_group
from specbench.drafters.keeping import KeepingDrafter, count_unread
from specbench.errors import InputError

PADDING = 0.01  # models with one tokenizer may pad their vocabularies differently (Qwen2.5: 151,936 and 152,064 rows)
Schedule = Literal["fixed", "heuristic"]


@dataclass
class DraftState:
    verifier: Verifier
    work: DraftWork
    root: Tensor  # (1,)
    pending: Tensor  # (n,) the draft model's ids of committed tokens that are not in its store yet, the root's last
    length: int  # K, the next draft's length
    drafted: int = 0  # tokens of its own draft in flight
    filled: int = 0  # entries of its row in the store, once rejected tokens are dropped


class SpeculativeSampling(KeepingDrafter[KVStore]):
    """Drafts up to `draft_tokens` tokens with its own language model.

    schedule: `fixed`, or `heuristic` as in transformers: two tokens more after a fully accepted draft, else one less but at least
    one; back to `draft_tokens` at every turn. confidence: stop after a less probable token (0: never). stop_at_eos: stop after
    the draft model's end-of-sequence token.
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
        self.check_vocabularies()
        self.set_ends(self.model.eos_ids)
        self._waiting = torch.zeros(1, dtype=torch.long, device=target.device)  # fed where other rows draft, and not kept

    def check_vocabularies(self) -> None:
        size, expected = self.model.vocabulary, self.target.vocabulary
        if abs(size - expected) > PADDING * expected:
            raise InputError(f"the draft model has a vocabulary of {size} tokens, the target of {expected}: they must share one")

    def set_ends(self, tokens: Collection[int]) -> None:
        """Note the end-of-sequence tokens that the draft model may draft, by the target's ids."""
        self._ends, self._eos = frozenset(tokens), torch.tensor(list(tokens), dtype=torch.long, device=self.target.device)

    def to_draft_tokens(self, tokens: Tensor) -> Tensor:
        """Return the draft model's ids of tokens (n,), or ids that exist there."""
        return tokens.clamp(max=self.model.vocabulary - 1) if self.model.vocabulary < self.target.vocabulary else tokens

    def to_target_logits(self, logits: Tensor) -> Tensor:
        """Return the draft model's logits (D, V) over the target's vocabulary."""
        missing = self.target.vocabulary - self.model.vocabulary  # negative: logits are cut off
        return nn.functional.pad(logits, (0, missing), value=-torch.inf) if missing else logits

    def read_committed(self, verified: Verification, count: int) -> Tensor:
        """Return the draft model's ids of the last `count` committed tokens."""
        return self.to_draft_tokens(verified.token_ids[-count:])

    def create_store(self, capacity: int, batch: int = 1) -> KVStore:
        return self.model.create_store(capacity, batch)

    def start(self, prompt: list[int], out: TargetOutput, context: SequenceContext) -> DraftState:
        ids = self.to_tensor(prompt)
        return DraftState(context.verifier, context.work, ids[-1:], self.to_draft_tokens(ids), self.draft_tokens)

    def propose(self, states: list[DraftState], budgets: list[int]) -> list[DraftTree]:
        roots = [state.root for state in states]
        for row, state in enumerate(states):
            self.store.rewind(row, state.filled)
        lengths = [min(state.length, budget) for state, budget in zip(states, budgets, strict=True)]
        picks = self._pick_drafts(states, lengths) if any(lengths) else [[] for _ in states]
        for row, (state, own) in enumerate(zip(states, picks, strict=True)):
            state.drafted, state.filled = len(own), self.store.lengths[row]
        return [DraftTree.from_picks(root, own) for root, own in zip(roots, picks, strict=True)]

    def _pick_drafts(self, states: list[DraftState], lengths: list[int]) -> list[list[Pick]]:
        """Pick each sequence's draft tokens, at most `lengths` of them; a forward serves all sequences that still draft."""
        picks: list[list[Pick]] = [[] for _ in states]
        late = self.stop_at_eos and states[0].pending.is_cuda and all(state.verifier is GREEDY for state in states)
        fed, drafting = self._take_pending(states, lengths), [row for row, length in enumerate(lengths) if length]
        while drafting:
            logits = self._forward(states, fed, drafting)
            chosen = pick_group([states[row].verifier for row in drafting], logits)
            for row, pick in zip(drafting, chosen, strict=True):
                picks[row].append(pick)
            stops = self._list_stops(logits, [token for token, _ in chosen], late)
            drafting = [row for row, stop in zip(drafting, stops, strict=True) if not stop and len(picks[row]) < lengths[row]]
            fed = {row: self.to_draft_tokens(picks[row][-1][0]) for row in drafting}
        if late:  # nothing is drawn for tokens that are dropped, and asking about each takes long
            self._cut_at_eos(states, picks)
        return picks

    def _take_pending(self, states: list[DraftState], lengths: list[int]) -> dict[int, Tensor]:
        """Return the committed tokens that the draft model reads now, by row."""
        counts = count_unread([len(state.pending) for state in states], lengths, self.store.lengths)
        fed = {row: state.pending for row, (state, count) in enumerate(zip(states, counts, strict=True)) if count}
        for row, tokens in fed.items():
            states[row].pending = tokens[:0]
        return fed

    def _forward(self, states: list[DraftState], fed: dict[int, Tensor], drafting: list[int]) -> Tensor:
        """Feed tokens to the draft model, which keeps their KV; return the logits (D, V) after those of the D that draft."""
        trees = [DraftTree.chain(fed.get(row, self._waiting)) for row in range(len(states))]
        outs = self.model.forward(self.store, trees, last_only=True)
        for row, tokens in fed.items():
            self.store.keep(row, range(len(tokens)))
        for row in drafting:
            states[row].work.forwards += 1
        return self.to_target_logits(pad_rows([outs[row].logits for row in drafting])[:, 0])

    def _list_stops(self, logits: Tensor, chosen: list[Tensor], late: bool) -> list[bool]:
        """Return which tokens (1,) end their drafts, with one copy for all. late: end of sequence is looked for later."""
        if not self.confidence and (late or not self.stop_at_eos):
            return [False] * len(chosen)
        ends, tokens = [], torch.cat(chosen)
        if self.confidence > 0:
            ends.append(logits.softmax(dim=-1).gather(1, tokens[:, None])[:, 0] < self.confidence)
        if self.stop_at_eos and not late:
            ends.append(torch.isin(tokens, self._eos))
        stops: list[bool] = torch.stack(ends).any(dim=0).tolist()
        return stops

    def _cut_at_eos(self, states: list[DraftState], picks: list[list[Pick]]) -> None:
        """Drop what was drafted after an end-of-sequence token, and do not count it; one copy for all tokens."""
        tokens = iter(torch.cat([token for own in picks for token, _ in own]).tolist())
        for row, own in enumerate(picks):
            drafted = list(islice(tokens, len(own)))
            kept = next((place for place, token in enumerate(drafted, start=1) if token in self._ends), len(own))
            self.store.rewind(row, self.store.lengths[row] - (len(own) - kept))
            states[row].work.forwards -= len(own) - kept
            del own[kept:]

    def observe(self, state: DraftState, tree: DraftTree, out: TargetOutput, verified: Verification) -> None:
        accepted, drafted = len(verified.path) - 1, state.drafted
        state.root = verified.token_ids[-1:]
        if not drafted:
            state.pending = torch.cat([state.pending, self.read_committed(verified, len(verified.tokens))])
            return
        state.filled -= max(0, drafted - 1 - accepted)  # the store has all but the last of the draft
        state.pending = self.read_committed(verified, 2 if accepted == drafted else 1)
        state.drafted = 0
        if self.schedule == "heuristic":
            state.length = state.length + 2 if accepted == state.length else max(1, state.length - 1)
