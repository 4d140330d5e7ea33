"""A CUDA graph without CUDA: records the operators of a region and replays them without Python, on the same memory.

What is wrong in a captured region shows here as it would on a card: a number of the host that was baked in, a tensor made anew at
each step and read at its old address, an operator that asks the device for a number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from tests.pretend_card import WAITING

Output = TypeVar("Output")
recorded: Counter[str] = Counter()  # operators of all regions, by name


class Call(NamedTuple):
    operator: Any
    args: Any
    kwargs: Any
    results: list[Tensor | None]  # to write to; None for what lies in an operand's memory


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = operator._schema.name.split("::")[1]
        _refuse(name, args, kwargs)
        recorded[name] += 1
        out = operator(*args, **kwargs)
        operands = {tensor.untyped_storage()._cdata for tensor in _list_tensors((args, kwargs))}
        results = [None if tensor.untyped_storage()._cdata in operands else tensor for tensor in _list_tensors(out)]
        if any(result is not None for result in results) or operator._schema.is_mutable:
            self.calls.append(Call(operator, args, kwargs, results))
        return out


def _list_tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor)]


def _refuse(name: str, args: Any, kwargs: Any) -> None:
    """Raise what a capture would: the host may not wait for the device, nor copy to it."""
    masks = name.startswith("index") and any(index.dtype == torch.bool for index in _list_tensors(args[1:2]))
    copies = name.startswith("lift_fresh") or (kwargs.get("device") is not None and name == "_to_copy")
    if masks or copies or name.rstrip("_") in WAITING:
        raise RuntimeError(f"{name} in a captured region")


def record(forward: Callable[[], Output], device: torch.device, pool: object) -> tuple[Callable[[], None], Output, object]:
    """As specbench.decoding.capture.record."""
    with _Recorder() as recorder:
        output = forward()

    def replay() -> None:
        for call in recorder.calls:
            made = _list_tensors(call.operator(*call.args, **call.kwargs))
            for own, new in zip(call.results, made, strict=True):
                if own is not None:
                    own.copy_(new)

    return replay, output, pool
