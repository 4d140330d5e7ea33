"""Training data of a drafter's network, conversations as the target reads them, and the losses computed on it."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from specbench.decoding.masks import share


@dataclass(frozen=True)
class Lesson:
    """A batch of B conversations of T tokens, padded on the right, as read by the target."""

    ids: Tensor  # (B, T)
    wanted: Tensor  # (B, T) bool: tokens of answers, which the drafter learns to predict
    hidden: Tensor  # (B, T, taps * H): the hidden states that the method taps
    last: Tensor  # (B, T, H): the final norm's output
    head: Callable[[Tensor], Tensor]  # maps `last` to logits

    def select_ahead(self, places: int) -> tuple[Tensor, Tensor]:
        """Return the positions (B, T) bool whose token `places` ahead is to be learned, and those n tokens (n,)."""
        mask = torch.zeros_like(self.wanted)
        mask[:, :-places] = self.wanted[:, places:]
        return mask, self.ids[:, places:][self.wanted[:, places:]]

    def locate_answers(self) -> Tensor:
        """Return the places of the answers' tokens in their conversations, (n,) int64, without any at place 0."""
        return self.wanted[:, 1:].nonzero()[:, 1] + 1

    def compute_teacher(self, mask: Tensor, places: int) -> Tensor:
        """Return the target's logits (n, V) for the tokens `places` ahead of the positions in mask (B, T)."""
        with torch.no_grad():
            return self.head(self.last.roll(1 - places, dims=1)[mask])


@dataclass
class LessonLoss:
    """Loss in nats, and the share of correct best guesses per draft depth."""

    loss: Tensor
    right: list[Tensor] = field(default_factory=list)  # () each; on the device, to avoid a synchronisation


def mean(values: Tensor) -> Tensor:
    """Mean of a tensor of any shape -> () float32; 0 if empty: no answer of a batch may be as long as the draft is deep."""
    return values.float().sum() / max(1, values.numel())


def cross_entropy(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean float32 cross-entropy of logits (n, V) with labels (n,), and the share of correct argmaxes."""
    return mean(nn.functional.cross_entropy(logits.float(), labels, reduction="none")), mean(logits.argmax(-1) == labels)


def divergence(logits: Tensor, teacher: Tensor) -> Tensor:
    """Return the cross-entropy of logits with the teacher's distribution, (n, V) each; mean over n, float32."""
    return -mean((teacher.float().softmax(-1) * logits.float().log_softmax(-1)).sum(-1))


class TrainingPass:
    """Causal passes of whole conversations through a drafter's layers.

    As in EAGLE-3's training-time test (section 3.2): in round j a position sees its own entries of rounds 1 to j, and the
    earlier positions' entries of round 0.
    """

    def __init__(self) -> None:
        self.sizes = [0]
        self._entries: dict[int | Tensor, tuple[Tensor, Tensor]] = {}  # keys and values so far, by layer
        self._mask: Tensor | None = None

    @property
    def store(self) -> "TrainingPass":
        """Itself; kept as an attribute, it would keep the entries of a batch until Python collects cycles."""
        return self

    @property
    def first(self) -> bool:
        """Whether attention is plainly causal and needs no mask."""
        return self._mask is None

    def get_mask(self, layer: int, window: int | None, heads: int = 1) -> Tensor | None:
        """Return the mask as the target's pass does."""
        return None if self._mask is None else share(self._mask, heads)

    def write(self, layer: int | Tensor, key: Tensor, value: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor]:
        """Return all keys and values so far, (B, heads, rounds * T, D) each."""
        if layer in self._entries:
            key, value = (torch.cat(pair, dim=2) for pair in zip(self._entries[layer], (key, value), strict=True))
        self._entries[layer] = key, value
        return key, value

    def advance_round(self) -> None:
        """Extend the mask by the next round's columns."""
        keys, _ = next(iter(self._entries.values()))
        tokens = keys.shape[2] if self._mask is None else len(self._mask)
        hidden = torch.full((tokens, tokens), float("-inf"), dtype=keys.dtype, device=keys.device)
        past = hidden.triu(1) if self._mask is None else self._mask
        self._mask = torch.cat([past, hidden.fill_diagonal_(0)], dim=1)
