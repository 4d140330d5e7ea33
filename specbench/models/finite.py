"""Refuse weights that are not numbers: one NaN makes every logit NaN, whose argmax is a token like any other."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from specbench.errors import InputError, abbreviate

WIDE = 2  # bytes: for narrower floats (float8) torch has no minimum or maximum


def check_weights(weights: nn.Module | Mapping[str, Tensor], what: str) -> None:
    """Raise InputError naming the floating tensors that hold NaN or infinity, and how many; reads every weight once.

    what: whose weights they are, such as `the checkpoint at PATH`.
    """
    wrong = [f"{name} ({count} of {total})" for name, count, total in _iter_faults(_name_tensors(weights))]
    if wrong:
        raise InputError(f"{what} holds NaN or infinite weights: {abbreviate(wrong)}")


def _name_tensors(weights: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a module's parameters and stored buffers, shared ones once."""
    if isinstance(weights, Mapping):
        return dict(weights)
    stored = weights.state_dict(keep_vars=True)
    first = {id(tensor): name for name, tensor in reversed(stored.items())}
    return {name: tensor for name, tensor in stored.items() if isinstance(tensor, Tensor) and first[id(tensor)] == name}


@torch.no_grad()
def _iter_faults(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, int, int]]:
    """Yield (name, entries that are not finite, all entries) of each tensor that has such entries."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or tensor.is_meta or not tensor.numel():
            continue
        values = tensor if tensor.element_size() >= WIDE else tensor.float()
        if not _is_finite(values):
            yield name, int((~values.isfinite()).sum()), values.numel()


def _is_finite(values: Tensor) -> bool:
    """By minimum and maximum, which pass NaN on: a hundred times faster than a mask of all entries."""
    least, largest = values.aminmax()
    return bool(least.isfinite() & largest.isfinite())
