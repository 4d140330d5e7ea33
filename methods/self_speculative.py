"""Self-speculative decoding (Zhang et al. 2023, "Draft & Verify"): the target drafts itself, some of its sublayers skipped."""

from dataclasses import dataclass

from torch import Tensor

from specbench.decoding.drafter import SequenceContext
from specbench.decoding.kv_store import KVStore
from specbench.decoding.language_model import TargetOutput
from specbench.decoding.tree import DraftTree, Pick
from specbench.decoding.verify import Verification, Verifier
from specbench.drafters.skipping_drafter import SkippingDrafter
from specbench.errors import InputError

KEPT = 0.5  # of the acceptance seen so far, at each verification (their beta 1)
INERTIA = 0.9  # of the threshold (their beta 2)
STEP = 0.01  # of the threshold (their epsilon)


@dataclass
class SelfDraftState:
    """past: the target's own KV; committed: tokens of it that stay; root (1,); acceptance: a moving average."""

    past: KVStore
    verifier: Verifier
    committed: int
    root: Tensor
    threshold: float
    acceptance: float = 0.0
    drafted: int = 0  # tokens of its own draft in flight


class SelfSpeculative(SkippingDrafter):
    """Drafts with the target's own weights and KV, the skip set's sublayers left out.

    draft_tokens: most drafted in a step. threshold: stop after a less probable token. adaptive: raise it when fewer than
    `target_acceptance` of the drafts are accepted, lower it otherwise (section 3.3). carry: the next prompt begins with the last
    one's threshold.
    """

    draws = True

    def __init__(
        self,
        checkpoint: str | None,
        draft_tokens: int,
        threshold: float,
        adaptive: bool,
        target_acceptance: float,
        carry: bool,
    ) -> None:
        if draft_tokens < 1:
            raise InputError(f"draft_tokens={draft_tokens}: expected a whole number, at least 1")
        for name, value in (("threshold", threshold), ("target_acceptance", target_acceptance)):
            if not 0 <= value <= 1:
                raise InputError(f"{name}={value}: expected a probability, 0 to 1")
        super().__init__(checkpoint)
        self.draft_tokens, self.threshold = draft_tokens, threshold
        self.adaptive, self.target_acceptance, self.carry = adaptive, target_acceptance, carry
        self.warm = carry
        self.reset()

    def reset(self) -> None:
        self.carried = self.threshold

    def start(self, prompt: list[int], out: TargetOutput, context: SequenceContext) -> SelfDraftState:
        return SelfDraftState(context.past, context.verifier, len(prompt) - 1, self.to_tensor(prompt[-1:]), self.carried)

    def draft(self, state: SelfDraftState, budget: int) -> DraftTree:
        """What drafting writes behind the committed KV is forgotten: the target computes it again, all layers of it.

        Drafts end where the authors' do, but for an answer that lacks one token: they draft another, which is cut off later.
        """
        state.past.lengths[0] = state.committed
        most = min(self.draft_tokens, budget)
        picks: list[Pick] = []
        fed = state.root
        while len(picks) < most:
            logits = self._forward(state.past, fed)
            picks.append(state.verifier.pick(logits))
            fed = picks[-1][0]
            if len(picks) < most and self._is_unsure(logits, fed, state):
                break
        state.drafted = len(picks)
        return DraftTree.from_picks(state.root, picks)

    def _forward(self, past: KVStore, token: Tensor) -> Tensor:
        """(1, V) logits behind one more token (1,), whose kept layers' KV joins the past for the rest of this draft."""
        self.draft_forwards += 1
        logits = self.model.forward(past, [DraftTree.chain(token)])[0].logits
        past.keep(0, (0,))
        return logits

    def _is_unsure(self, logits: Tensor, token: Tensor, state: SelfDraftState) -> bool:
        """By the model's own probability, at any temperature; the one copy from device to host that a drafted token costs."""
        return state.threshold > 0 and float(logits.float().softmax(dim=-1)[0, token]) < state.threshold

    def observe(self, state: SelfDraftState, tree: DraftTree, out: TargetOutput, verified: Verification) -> None:
        state.committed += len(verified.path)
        state.root = self.to_tensor([verified.next_token])
        drafted, state.drafted = state.drafted, 0
        if self.adaptive and drafted:
            self._adapt(state, len(verified.path) - 1, drafted)

    def _adapt(self, state: SelfDraftState, accepted: int, drafted: int) -> None:
        """Section 3.3, equation 3, and what the authors' code adds: no draft of full length lowers the threshold."""
        state.acceptance = KEPT * state.acceptance + (1 - KEPT) * accepted / drafted
        moved = state.threshold
        if state.acceptance < self.target_acceptance:
            moved += STEP
        elif drafted < self.draft_tokens:
            moved -= STEP
        state.threshold = INERTIA * state.threshold + (1 - INERTIA) * moved
        if self.carry:
            self.carried = state.threshold
