"""How a token is drawn: the distribution after temperature, top-k and top-p, and one sequence's random numbers."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

HEAD = 256  # most probable tokens looked at before a whole vocabulary is sorted


@dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy; top_p 1 and top_k 0 leave all tokens; stop_token_ids end a sequence and count as its last."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 1024
    stop_token_ids: tuple[int, ...] = ()
    seed: int = 0


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """(..., V) logits -> (..., V) float32. First the temperature (above 0), then top-k, then top-p, in transformers' order."""
    scaled = logits.float() / sampling.temperature
    if 0 < sampling.top_k < scaled.shape[-1]:
        least = scaled.topk(sampling.top_k).values[..., -1:]
        scaled = scaled.masked_fill(scaled < least, -torch.inf)
    whole = scaled.softmax(dim=-1)
    return nucleus(whole, sampling.top_p) if sampling.top_p < 1 else whole


def nucleus(whole: Tensor, top_p: float) -> Tensor:
    """The fewest most probable tokens that together reach top_p, made to sum to one (Holtzman et al. 2020). (..., V) each.

    What is as probable as the last of them stays as well, so that no order among equals matters.
    """
    best = whole.topk(min(HEAD, whole.shape[-1])).values
    if best.sum(dim=-1).min() < top_p:
        best = whole.sort(descending=True).values
    before = best.cumsum(dim=-1) - best
    last = (before < top_p).sum(dim=-1, keepdim=True) - 1
    kept = whole.masked_fill(whole < best.gather(-1, last), 0)
    return kept / kept.sum(dim=-1, keepdim=True)


class Dice:
    """All random numbers of one sequence: the same seed and row give the same ones."""

    def __init__(self, seed: int, row: int, device: torch.device) -> None:
        digest = hashlib.sha256(f"{seed}/{row}".encode()).digest()  # neighbouring seeds of a Mersenne twister are alike
        self.generator = torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))

    def draw_uniform(self) -> Tensor:
        """() float64 in [0, 1)."""
        return torch.rand((), dtype=torch.float64, device=self.generator.device, generator=self.generator)

    def draw(self, weights: Tensor) -> Tensor:
        """() int64: a token by weights (V,), which need not sum to one. By inversion: one uniform number each."""
        below = weights.double().cumsum(dim=-1)
        found = torch.searchsorted(below, self.draw_uniform() * below[-1], right=True)
        return found.clamp(max=len(weights) - 1)

    def draw_distinct(self, weights: Tensor, count: int) -> Tensor:
        """(M, count) int64: of each row (M, V) so many tokens without replacement, in the order drawn; those of weight 0 last.

        An exponential race: token i arrives at a time drawn with rate w_i, and the first ones win.
        """
        uniform = torch.rand(weights.shape, dtype=torch.float64, device=weights.device, generator=self.generator)
        return (-torch.log1p(-uniform) / weights).topk(count, largest=False).indices
