"""A drafter with keys and values of its own."""

from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from torch import Tensor

from specbench.decoding.drafter import Drafter, SequenceContext
from specbench.decoding.language_model import TargetOutput
from specbench.decoding.sampling import Sampling

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

    def create_store(self, capacity: int) -> S:
        raise NotImplementedError

    def start_in(self, store: S, prompt: list[int], out: TargetOutput, context: SequenceContext) -> Any:
        """`start`, with an empty store."""
        raise NotImplementedError

    def prepare(self, prompts: list[Tensor], sampling: Sampling, capacity: int) -> None:
        self._capacity = capacity

    def begin(self, prompts: list[list[int]], outs: list[TargetOutput], contexts: list[SequenceContext]) -> list[Any]:
        sequences = zip(prompts, outs, contexts, strict=True)
        return [self.start_in(self._get_store(row), *given) for row, given in enumerate(sequences)]

    def _get_store(self, row: int) -> S:
        if row == len(self._stores):
            self._stores.append(self.create_store(self._capacity))
        if self._stores[row].capacity < self._capacity:
            self._stores[row] = self.create_store(self._capacity)
        self._stores[row].clear()
        return self._stores[row]
