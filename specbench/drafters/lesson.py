"""What a drafter's network learns from: conversations as the target reads them, and how well it did, depth by depth."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Lesson:
    """A batch of B conversations of T tokens, padded on the right, through the target.

    ids (B, T); wanted (B, T) bool: tokens of answers, which the drafter is to predict; hidden (B, T, taps * H): the target's
    hidden states that the method taps; last (B, T, H): the final norm's output; head: from there to logits.
    """

    ids: Tensor
    wanted: Tensor
    hidden: Tensor
    last: Tensor
    head: Callable[[Tensor], Tensor]

    def select_ahead(self, places: int) -> tuple[Tensor, Tensor]:
        """Positions (B, T) bool whose token so many places ahead is to be learned, and those tokens (n,)."""
        there = torch.zeros_like(self.wanted)
        there[:, :-places] = self.wanted[:, places:]
        return there, self.ids[:, places:][self.wanted[:, places:]]

    def compute_teacher(self, there: Tensor, places: int) -> Tensor:
        """(n, V) the target's own logits for those tokens: what it says one place before each."""
        with torch.no_grad():
            return self.head(self.last.roll(1 - places, dims=1)[there])


@dataclass
class LessonLoss:
    """Loss, in nats, and how often the best guess was right, by depth of the draft."""

    loss: Tensor
    right: list[Tensor] = field(default_factory=list)  # per depth a share, as a tensor that waits on no device


def mean(values: Tensor) -> Tensor:
    """Of any shape -> () float32; 0 of no values: a batch may hold no answer as long as the draft is deep."""
    return values.float().sum() / max(1, values.numel())


def cross_entropy(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(n, V) against tokens (n,): mean loss in float32 and the share that is right."""
    return mean(nn.functional.cross_entropy(logits.float(), labels, reduction="none")), mean(logits.argmax(-1) == labels)


def divergence(logits: Tensor, teacher: Tensor) -> Tensor:
    """(n, V) each: cross-entropy with the teacher's distribution, mean over n, float32."""
    return -mean((teacher.float().softmax(-1) * logits.float().log_softmax(-1)).sum(-1))


class TrainingPass:
    """A pass of whole conversations through a drafter's layers: causal; a later one also sees itself and its own column above.

    So does the training-time test of EAGLE-3 (section 3.2): in round j a position reads what it made of itself in rounds 1 to j,
    and what the others made in round 0.
    """

    def __init__(self) -> None:
        self.store, self.sizes = self, [0]
        self._keys: Tensor | None = None
        self._values: Tensor | None = None
        self._mask: Tensor | None = None

    @property
    def first(self) -> bool:
        """Whether no mask is needed: plainly causal."""
        return self._mask is None

    def get_mask(self, window: int | None) -> Tensor | None:
        return self._mask

    def write(self, layer: int | Tensor, key: Tensor, value: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor]:
        """All keys and values so far, (B, heads, rounds * T, D) each."""
        if self._keys is not None and self._values is not None:
            key, value = torch.cat([self._keys, key], dim=2), torch.cat([self._values, value], dim=2)
        self._keys, self._values = key, value
        return key, value

    def advance_round(self) -> None:
        assert self._keys is not None
        tokens = self._keys.shape[2] if self._mask is None else len(self._mask)
        seen = torch.full((tokens, tokens), float("-inf"), dtype=self._keys.dtype, device=self._keys.device)
        past = seen.triu(1) if self._mask is None else self._mask
        own = seen.fill_diagonal_(0)
        self._mask = torch.cat([past, own], dim=1)
