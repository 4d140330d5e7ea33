"""The largest logit, and the token that has it."""

from math import gcd

from torch import Tensor

LARGE = 1 << 14  # tokens of a vocabulary that is searched block by block
BLOCK, SMALLEST_BLOCK = 512, 64


def find_largest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(..., V) -> the maximum, and the first token that has it, (...) each. A NaN counts as the largest.

    On a CPU, argmax and max compare element by element, while amax uses vector instructions: it finds the block of the maximum.
    """
    size = gcd(logits.shape[-1], BLOCK)
    if logits.device.type != "cpu" or logits.shape[-1] < LARGE or size < SMALLEST_BLOCK:
        largest, token = logits.max(dim=-1)
        return largest, token
    blocks = logits.reshape(*logits.shape[:-1], -1, size)
    largest, block = blocks.amax(dim=-1).max(dim=-1)
    inside = blocks.take_along_dim(block[..., None, None], dim=-2).squeeze(-2)
    return largest, block * size + inside.max(dim=-1).indices
