"""What the self-test requires of rows of logits."""

import torch
from torch import Tensor

from specbench.errors import InputError

FAR = 100.0  # logits so far below the best one do not count


def is_finite(logits: Tensor) -> bool:
    """Return whether a row of logits (n, V) can be used: NaN and +inf win every maximum, -inf forbids a token."""
    return bool(logits.amax(dim=-1).isfinite().all())


def check_spread(rows: Tensor) -> None:
    """Raise InputError for logits (n, V) that are equal over all tokens, or after all texts: every forward would pass."""
    if torch.equal(rows.amax(dim=-1), rows.amin(dim=-1)):
        raise InputError("its logits are all equal")
    if torch.equal(rows, rows[:1].expand_as(rows)):
        raise InputError("its logits are the same after every text")


def measure_distance(found: Tensor, expected: Tensor) -> Tensor:
    """(n,): the root mean square difference of each row of logits (n, V), relative to the spread of the expected ones."""
    near = expected > expected.amax(dim=-1, keepdim=True) - FAR  # an expanded model's further tokens are far
    count = near.sum(dim=-1)
    mean = expected.where(near, 0).sum(dim=-1) / count
    spread = (expected - mean[:, None]).where(near, 0).square().sum(dim=-1)
    error = (found - expected).where(near, 0).square().sum(dim=-1)
    return (error / spread.clamp(min=torch.finfo(spread.dtype).tiny)).sqrt()
