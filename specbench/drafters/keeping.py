"""A drafter with keys and values of its own."""

from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from specbench.decoding.drafter import Drafter
from specbench.decoding.language_model import TargetOutput

if TYPE_CHECKING:
    pass


class Store(Protocol):
    """Keys and values of one sequence: a KVStore, a DraftKV."""

    @property
    def capacity(self) -> int: ...

    def clear(self) -> None: ...


S = TypeVar("S", bound=Store)


class KeepingDrafter(Drafter, Generic[S]):
    """A drafter with keys and values of its own: a store per row of the batch, cleared each turn, made anew when too small."""

    def __init__(self) -> None:
        self._stores: list[S] = []
        self._capacity = 0

    def new_store(self, capacity: int) -> S:
        raise NotImplementedError

    def start_in(self, store: S, prompt: list[int], out: TargetOutput) -> Any:
        """`start`, with an empty store."""
        raise NotImplementedError

    def reserve(self, capacity: int) -> None:
        self._capacity = capacity

    def begin(self, prompts: list[list[int]], outs: list[TargetOutput]) -> list[Any]:
        return [self.start_in(self._store(row), prompt, out) for row, (prompt, out) in enumerate(zip(prompts, outs, strict=True))]

    def _store(self, row: int) -> S:
        if row == len(self._stores):
            self._stores.append(self.new_store(self._capacity))
        if self._stores[row].capacity < self._capacity:
            self._stores[row] = self.new_store(self._capacity)
        self._stores[row].clear()
        return self._stores[row]
