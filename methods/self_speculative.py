"""Self-speculative decoding (Zhang et al. 2023, "Draft & Verify"): the target drafts with some of its sublayers skipped."""

from dataclasses import dataclass

from torch import Tensor

from specbench.bounds import Length, Probability
from specbench.decoding.drafter import DraftWork, SequenceContext
from specbench.decoding.kv_store import KVStore
from specbench.decoding.language_model import TargetOutput
from specbench.decoding.tree import DraftTree, Pick
from specbench.decoding.verify import Verification, Verifier
from specbench.drafters.skipping_drafter import SkippingDrafter

BETA_1 = 0.5  # weight of the past in the moving average of the acceptance rate
BETA_2 = 0.9  # weight of the past in the threshold
EPSILON = 0.01  # step of the threshold


@dataclass
class SelfDraftState:
    past: KVStore  # the target's own
    verifier: Verifier
    work: DraftWork
    committed: int  # entries of `past` without drafts
    root: Tensor  # (1,)
    threshold: float
    acceptance: float = 0.0  # moving average
    drafted: int = 0  # tokens of its own draft in flight


class SelfSpeculative(SkippingDrafter):
    """Drafts with the target's own weights and KV, without the skip set's sublayers.

    draft_tokens: most tokens per draft. threshold: stop after a less probable token. adaptive: raise the threshold when the
    acceptance rate is below `target_acceptance`, else lower it (section 3.3). carry: the next prompt starts with this one's
    threshold.
    """

    draws = True

    def __init__(
        self,
        checkpoint: str | None,
        draft_tokens: Length,
        threshold: Probability,
        adaptive: bool,
        target_acceptance: Probability,
        carry: bool,
    ) -> None:
        super().__init__(checkpoint)
        self.draft_tokens, self.threshold = draft_tokens, threshold
        self.adaptive, self.target_acceptance, self.carry = adaptive, target_acceptance, carry
        self.warm = carry
        self.reset()

    def reset(self) -> None:
        self.carried = self.threshold

    def start(self, prompt: list[int], out: TargetOutput, context: SequenceContext) -> SelfDraftState:
        root = self.to_tensor(prompt[-1:])
        return SelfDraftState(context.past, context.verifier, context.work, len(prompt) - 1, root, self.carried)

    def draft(self, state: SelfDraftState, budget: int) -> DraftTree:
        """Draft a chain. The KV written after the committed entries is discarded, as the target recomputes it with all layers.

        Drafts end where the authors' do, except at the end of an answer, where they draft one more token that is cut off later.
        """
        state.past.lengths[0] = state.committed
        most = min(self.draft_tokens, budget)
        picks: list[Pick] = []
        fed = state.root
        while len(picks) < most:
            logits = self._forward(state, fed)
            picks.append(state.verifier.pick(logits))
            fed = picks[-1][0]
            if len(picks) < most and self._is_unsure(logits, fed, state):
                break
        state.drafted = len(picks)
        return DraftTree.from_picks(state.root, picks)

    def _forward(self, state: SelfDraftState, token: Tensor) -> Tensor:
        """Return the logits (1, V) after one more token (1,), whose KV joins the past for the rest of this draft."""
        state.work.forwards += 1
        logits = self.model.forward(state.past, [DraftTree.chain(token)])[0].logits
        state.past.keep(0, (0,))
        return logits

    def _is_unsure(self, logits: Tensor, token: Tensor, state: SelfDraftState) -> bool:
        """Return whether q(x) < threshold, always at temperature 1; the only device-to-host copy per drafted token."""
        return state.threshold > 0 and float(logits.float().softmax(dim=-1)[0, token]) < state.threshold

    def observe(self, state: SelfDraftState, tree: DraftTree, out: TargetOutput, verified: Verification) -> None:
        state.committed += len(verified.path)
        state.root = verified.token_ids[-1:]
        drafted, state.drafted = state.drafted, 0
        if self.adaptive and drafted:
            self._adapt(state, len(verified.path) - 1, drafted)

    def _adapt(self, state: SelfDraftState, accepted: int, drafted: int) -> None:
        """Update the threshold gamma towards the target acceptance alpha (section 3.3, equation 3).

        AR <- beta_1 AR + (1 - beta_1) AR_e;  gamma~ = gamma + epsilon if AR < alpha, else gamma - epsilon;
        gamma <- beta_2 gamma + (1 - beta_2) gamma~. As in the authors' code, a draft of full length never lowers gamma.
        """
        state.acceptance = BETA_1 * state.acceptance + (1 - BETA_1) * accepted / drafted
        moved = state.threshold
        if state.acceptance < self.target_acceptance:
            moved += EPSILON
        elif drafted < self.draft_tokens:
            moved -= EPSILON
        state.threshold = BETA_2 * state.threshold + (1 - BETA_2) * moved
        if self.carry:
            self.carried = state.threshold
