"""Training on blocks of tokens that begin at random places of the answers, as block drafters draft them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from specbench.drafters.lesson import Lesson, TrainingPass

APART = 4  # tokens of a conversation per block


@dataclass(frozen=True)
class Blocks:
    """A blocks of n rows in each of B conversations of T tokens; `rows` of them draft, the last ones."""

    anchors: Tensor  # (B, A): the tokens that the blocks begin with
    positions: Tensor  # (B, A, n)
    labels: Tensor  # (B, A, rows): the tokens to draft
    before: Tensor  # (B, A, rows): the tokens before them
    places: Tensor  # (B, A, rows): of the labels in their conversations
    taught: Tensor  # (B, A, rows) bool: rows whose label, like all before it, is in the answer
    tokens: int  # T

    def build_mask(self, dtype: torch.dtype) -> Tensor:
        """(B, 1, A * n, T + A * n), additive: a row sees the text before its block's first token, and its block."""
        batch, blocks, size = self.positions.shape
        text = torch.arange(self.tokens, device=self.positions.device) < self.positions[:, :, :1]  # (B, A, T)
        same = torch.eye(blocks, dtype=torch.bool, device=text.device)[None].expand(batch, -1, -1)
        seen = torch.cat([text, same.repeat_interleave(size, dim=2)], dim=2).repeat_interleave(size, dim=1)
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))[:, None]

    def weigh(self, decay: float) -> Tensor:
        """(B, A, rows): exp(-row / decay) for rows that are taught, else 0."""
        rows = torch.arange(self.taught.shape[2], device=self.taught.device)
        return self.taught * torch.exp(-rows / decay)

    def compute_teacher(self, lesson: Lesson) -> Tensor:
        """Return the target's logits for the labels, (B, A, rows, V)."""
        batch = torch.arange(len(self.places), device=self.places.device)[:, None, None]
        with torch.no_grad():
            return lesson.head(lesson.last[batch, self.places - 1])

    def average(self, values: Tensor) -> list[Tensor]:
        """Return the means of values (B, A, rows), per row, over the blocks that are taught it: () each."""
        sums = (values * self.taught).sum(dim=(0, 1)) / self.taught.sum(dim=(0, 1)).clamp(min=1)
        return list(sums.float())


def draw_anchors(lesson: Lesson, size: int, first: int) -> Blocks:
    """Draw blocks of `size` rows whose first token and the one after it are the answer's. first: the first row that drafts."""
    tokens = lesson.ids.shape[1]
    able = torch.zeros_like(lesson.wanted)
    able[:, 1:-1] = lesson.wanted[:, 1:-1] & lesson.wanted[:, 2:]
    drawn = torch.rand(able.shape, device=able.device).masked_fill(~able, -1).topk(max(1, tokens // APART), dim=1)
    starts = drawn.indices.clamp(min=1)[:, :, None]
    positions = starts + torch.arange(size, device=starts.device)
    places = starts + torch.arange(1, 1 + size - first, device=starts.device)
    inside = places.clamp(max=tokens - 1)
    labels, before = _gather(lesson.ids, inside), _gather(lesson.ids, inside - 1)
    wanted = _gather(lesson.wanted, inside) & (places < tokens) & (drawn.values[:, :, None] >= 0)
    return Blocks(_gather(lesson.ids, starts)[:, :, 0], positions, labels, before, inside, wanted.cumprod(dim=2).bool(), tokens)


def _gather(values: Tensor, places: Tensor) -> Tensor:
    """values (B, T) at places (B, A, n) -> (B, A, n)."""
    return values.gather(1, places.flatten(1)).view(places.shape)


class BlockPass(TrainingPass):
    """One pass of blocks through a drafter's layers, after the keys and values of their texts. mask: see Blocks.build_mask."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self._mask = mask
