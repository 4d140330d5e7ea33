"""Sampling: the distribution after temperature, top-k and top-p, and the random numbers of one sequence."""

import hashlib
import random
from dataclasses import dataclass

import torch
from torch import Tensor

from specbench.decoding.stopping import Ending

HEAD = 256  # most probable tokens examined before a whole vocabulary is sorted


@dataclass(frozen=True)
class Sampling:
    """Temperature 0 is greedy; top_p 1 and top_k 0 keep all tokens; a stop token ends a sequence and is its last token.

    Only the length can end a sequence within its first `min_new_tokens`: the target's stop tokens have probability 0 there,
    before temperature, top-k and top-p are applied, and `ending` does not look at these tokens.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 1024
    stop_token_ids: tuple[int, ...] = ()
    seed: int = 0
    min_new_tokens: int = 0
    ending: Ending | None = None


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """(..., V) logits -> (..., V) float32: temperature (above 0), then top-k, then top-p, in transformers' order."""
    scaled = logits.float() / sampling.temperature
    if 0 < sampling.top_k < scaled.shape[-1]:
        least = scaled.topk(sampling.top_k).values[..., -1:]
        scaled = scaled.masked_fill(scaled < least, -torch.inf)
    probs = scaled.softmax(dim=-1)
    return nucleus(probs, sampling.top_p) if sampling.top_p < 1 else probs


def nucleus(probs: Tensor, top_p: float) -> Tensor:
    """Restrict to the smallest set V_p of most probable tokens with sum P(x) >= top_p; renormalise (Holtzman et al. 2020).

    (..., V) each. Tokens as probable as the last one of V_p stay too, so the order of ties does not matter.
    """
    best = probs.topk(min(HEAD, probs.shape[-1])).values
    if best.sum(dim=-1).min() < top_p:
        best = probs.sort(descending=True).values
    before = best.cumsum(dim=-1) - best
    last = ((before < top_p).sum(dim=-1, keepdim=True) - 1).clamp(min=0)  # none of NaN, which stays NaN
    kept = probs.masked_fill(probs < best.gather(-1, last), 0)
    return kept / kept.sum(dim=-1, keepdim=True)


def spread_seed(seed: int, count: int) -> list[int]:
    """Return seeds for `count` sequences that share one given seed."""
    draw = random.Random(seed)
    return [draw.getrandbits(48) for _ in range(count)]


class Dice:
    """All random numbers of one sequence, determined by its seed, wherever in a batch it is decoded."""

    def __init__(self, seed: int, device: torch.device) -> None:
        digest = hashlib.sha256(f"{seed}/0".encode()).digest()  # a Mersenne twister's neighbouring seeds are correlated
        self.generator = torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))

    def draw_uniform(self) -> Tensor:
        """() float64 in [0, 1)."""
        return torch.rand((), dtype=torch.float64, device=self.generator.device, generator=self.generator)

    def draw(self, weights: Tensor) -> Tensor:
        """Draw a token, () int64, by weights (V,), which need not sum to one; inverts one uniform number."""
        cumulative = weights.double().cumsum(dim=-1)
        token = torch.searchsorted(cumulative, self.draw_uniform() * cumulative[-1], right=True)
        return token.clamp(max=len(weights) - 1)

    def draw_distinct(self, weights: Tensor, count: int) -> Tensor:
        """Draw `count` tokens of each row (M, V) without replacement -> (M, count) int64, in order; weight 0 comes last.

        An exponential race: token i arrives after a time drawn with rate w_i, and the first `count` arrivals win.
        """
        uniform = torch.rand(weights.shape, dtype=torch.float64, device=weights.device, generator=self.generator)
        return (-torch.log1p(-uniform) / weights).topk(count, largest=False).indices
