"""Run code without its memory, to find out how much it needs: on tensors with a shape, a dtype and a device, but no contents.

Every result has the size that it will have, whatever code computes it. Whatever is read from a tensor, be it a token or whether a
number is finite, is 1: only code whose sizes do not depend on what it reads can be rehearsed. Boolean masks
select `rows` rows at most.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar
from weakref import finalize

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
READS = (aten.item.default, aten._local_scalar_dense.default)
YES = (aten.is_nonzero.default, aten.equal.default, aten.allclose.default)
ANY = {torch.bool: True, torch.float64: 1.0, torch.float32: 1.0, torch.bfloat16: 1.0, torch.float16: 1.0}  # what is read


class Rehearsal(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the tensors that are made inside. held: now. peak: most at once since `restart`."""

    current: ClassVar[Rehearsal | None] = None

    def __init__(self, rows: int = 1 << 62, chosen: Mapping[int, int] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.held = self.peak = 0
        self._rows, self._chosen = rows, chosen or {}
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._storages: dict[int, finalize[..., Any]] = {}

    def __enter__(self) -> Rehearsal:
        self._fake.__enter__()
        super().__enter__()  # type: ignore[no-untyped-call]
        Rehearsal.current = self
        return self

    def __exit__(self, *error: Any) -> None:
        Rehearsal.current = None
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._fake.__exit__(*error)

    def restart(self) -> int:
        """Forget the peak; return what is held."""
        self.peak = self.held
        return self.held

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        args, kwargs = tree_map(self._take, (args, kwargs))
        if func in YES:
            return True
        if func in READS:
            return ANY.get(args[0].dtype, 1)
        if func is aten.nonzero.default:
            out = args[0].new_empty((self._count(args[0]), args[0].ndim), dtype=torch.long)
        elif func is aten.index.Tensor:
            out = func(args[0], [part for index in args[1] for part in self._list_places(index)])
        else:
            out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._add(tensor)
        return out

    def _take(self, argument: Any) -> Any:
        """Return the stand-in for an argument; a tensor that existed before does not count."""
        if not isinstance(argument, Tensor) or isinstance(argument, FakeTensor):
            return argument
        taken = self._fake.from_tensor(argument)
        self._add(taken, size=0)
        return taken

    def _count(self, mask: Tensor) -> int:
        return self._chosen.get(mask.numel(), min(mask.numel(), self._rows))

    def _list_places(self, index: Tensor | None) -> list[Tensor | None]:
        """Return the indices that a mask selects, one per dimension; any other index unchanged."""
        if index is None or index.dtype != torch.bool:
            return [index]
        return [index.new_empty(self._count(index), dtype=torch.long) for _ in range(index.ndim)]

    def _add(self, tensor: Tensor, size: int | None = None) -> None:
        """Count a tensor's memory, unless it is already counted. size: its true size, if not the one it reports."""
        storage = tensor.untyped_storage()
        if (key := storage._cdata) not in self._storages:
            size = storage.nbytes() if size is None else size
            self._storages[key] = finalize(storage, self._free, key, size)
            self.held += size
            self.peak = max(self.peak, self.held)

    def _free(self, key: int, size: int) -> None:
        self.held -= size
        del self._storages[key]


def is_rehearsing() -> bool:
    return Rehearsal.current is not None


@contextmanager
def pause_rehearsal() -> Iterator[None]:
    """Read contents, such as those of a file, in the middle of a rehearsal."""
    with _disable_current_modes():
        yield
