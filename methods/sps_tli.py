"""Speculative sampling with a draft model of another tokenizer (Timor et al. 2025, section 4: token-level intersection).

Only tokens that both vocabularies hold are drafted: q is the draft model's distribution over them. So verification is unchanged,
and the text is the target's own.
"""

import torch
from torch import Tensor

from methods.sps import DraftState, Schedule, SpeculativeSampling
from specbench.bounds import Length, Probability
from specbench.decoding.drafter import SequenceContext
from specbench.decoding.language_model import LanguageModel, TargetOutput
from specbench.decoding.sampling import Sampling
from specbench.decoding.tree import DraftTree
from specbench.decoding.verify import Verification
from specbench.errors import InputError
from specbench.models.token_map import NONE, TokenMap

LONGER = 2  # the draft model's store has room for this many times as many tokens as the target's


class TokenIntersection(SpeculativeSampling):
    """As SpeculativeSampling.

    A committed token that the draft model lacks is decoded, and its text is read in the draft model's tokens.
    """

    def __init__(
        self,
        draft: LanguageModel,
        tokens: TokenMap,
        draft_tokens: Length,
        schedule: Schedule,
        confidence: Probability,
        stop_at_eos: bool,
    ) -> None:
        super().__init__(draft, draft_tokens, schedule, confidence, stop_at_eos)
        self.tokens = tokens

    def check_vocabularies(self) -> None:
        size = len(self.tokens.to_target)
        if size > self.model.vocabulary:
            raise InputError(
                f"the draft model has {self.model.vocabulary} tokens, its tokenizer {size}: they do not belong together"
            )

    def bind(self, target: LanguageModel) -> None:
        super().bind(target)
        numbers = self.tokens.to_target
        numbers = torch.where(numbers < target.vocabulary, numbers, NONE)
        shared = (numbers != NONE).nonzero()[:, 0]
        self._shared, self._named = shared.to(target.device), numbers[shared].to(target.device)
        self._back = torch.zeros(target.vocabulary, dtype=torch.long, device=target.device)
        self._back[self._named] = self._shared
        self._to_draft = dict(zip(numbers[shared].tolist(), shared.tolist(), strict=True))
        ends = [int(numbers[token]) for token in self.model.eos_ids if token < len(numbers)]
        self.set_ends([token for token in ends if token != NONE])

    def prepare(self, prompts: list[Tensor], samplings: list[Sampling], capacity: int) -> None:
        """Also leave room for a prompt that is longer in the draft model's tokens, and an answer up to LONGER times as long."""
        longest = max(len(self.tokens.rewrite(prompt.tolist())) for prompt in prompts)
        own = longest + LONGER * max(capacity - len(prompt) for prompt in prompts)
        super().prepare(prompts, samplings, min(max(capacity, own), max(capacity, self.model.context)))

    def propose(self, states: list[DraftState], budgets: list[int]) -> list[DraftTree]:
        """Draft nothing once a text no longer fits in the store."""
        room = [self.store.capacity - state.filled - len(state.pending) - state.length for state in states]
        return super().propose(states, [budget if left > 0 else 0 for budget, left in zip(budgets, room, strict=True)])

    def start(self, prompt: list[int], out: TargetOutput, context: SequenceContext) -> DraftState:
        pending = self.to_tensor([*self.tokens.rewrite(prompt[:-1]), *self._rewrite(prompt[-1])])
        return DraftState(context.verifier, context.work, self.to_tensor(prompt[-1:]), pending, self.draft_tokens)

    def _rewrite(self, token: int) -> list[int]:
        """Return the draft model's ids of a token, or id 0 for a token without text, such as a special token."""
        return [self._to_draft[token]] if token in self._to_draft else self.tokens.rewrite([token]) or [0]

    def to_draft_tokens(self, tokens: Tensor) -> Tensor:
        """Map drafted ids of the target (n,) to the draft model's (n,)."""
        return self._back[tokens]

    def to_target_logits(self, logits: Tensor) -> Tensor:
        """(n, draft vocabulary) -> (n, V): tokens that are not shared have -inf."""
        full = logits.new_full((len(logits), self.target.vocabulary), -torch.inf)
        return full.index_copy_(1, self._named, logits.index_select(1, self._shared))

    def read_committed(self, verified: Verification, count: int) -> Tensor:
        tokens = verified.tokens[-count:]
        if all(token in self._to_draft for token in tokens):
            return self._back[verified.token_ids[-count:]]
        return self.to_tensor([own for token in tokens for own in self._rewrite(token)])
