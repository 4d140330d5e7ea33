"""Drafters with their own keys and values."""

from typing import Any, Generic, TypeVar

from torch import Tensor

from specbench.decoding.drafter import Drafter, SequenceContext
from specbench.decoding.kv_store import KVStore
from specbench.decoding.language_model import TargetOutput
from specbench.decoding.sampling import Sampling
from specbench.drafters.layers import DraftKV

S = TypeVar("S", KVStore, DraftKV)  # keys and values of one sequence


class KeepingDrafter(Drafter, Generic[S]):
    """A drafter with one store per row of the batch, cleared at each turn and replaced when it is too small."""

    def __init__(self) -> None:
        self._stores: list[S] = []
        self._capacity = 0

    def create_store(self, capacity: int) -> S:
        raise NotImplementedError

    def start_in(self, store: S, prompt: list[int], out: TargetOutput, context: SequenceContext) -> Any:
        """Like `start`, with an empty store."""
        raise NotImplementedError

    def prepare(self, prompts: list[Tensor], sampling: Sampling, capacity: int) -> None:
        self._capacity = capacity

    def begin(self, prompts: list[list[int]], outs: list[TargetOutput], contexts: list[SequenceContext]) -> list[Any]:
        sequences = zip(prompts, outs, contexts, strict=True)
        return [self.start_in(self._get_store(row), *sequence) for row, sequence in enumerate(sequences)]

    def _get_store(self, row: int) -> S:
        if row == len(self._stores):
            self._stores.append(self.create_store(self._capacity))
        if self._stores[row].capacity < self._capacity:
            self._stores[row] = self.create_store(self._capacity)
        self._stores[row].clear()
        return self._stores[row]
