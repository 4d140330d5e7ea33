"""Drafters with their own keys and values."""

from typing import Any, Generic, TypeVar

from torch import Tensor

from specbench.decoding.drafter import Drafter, SequenceContext
from specbench.decoding.kv_store import KVStore
from specbench.decoding.language_model import TargetOutput
from specbench.decoding.sampling import Sampling
from specbench.drafters.layers import DraftKV

S = TypeVar("S", KVStore, DraftKV)


class KeepingDrafter(Drafter, Generic[S]):
    """A drafter with a store for the batch, in which a sequence has the row of its place.

    Stores are cleared at each turn and replaced when they are too small; one is kept per size of batch.
    """

    store: S

    def __init__(self) -> None:
        self._stores: dict[int, S] = {}

    def create_store(self, capacity: int, batch: int = 1) -> S:
        raise NotImplementedError

    def prepare(self, prompts: list[Tensor], samplings: list[Sampling], capacity: int) -> None:
        batch = len(prompts)
        if batch not in self._stores or self._stores[batch].capacity < capacity:
            self._stores[batch] = self.create_store(capacity, batch)
        self.store = self._stores[batch]

    def begin(self, prompts: list[list[int]], outs: list[TargetOutput], contexts: list[SequenceContext]) -> list[Any]:
        self.store.clear()
        return super().begin(prompts, outs, contexts)

    def count_bytes(self) -> int:
        """Return the bytes of the stores."""
        return sum(store.bytes for store in self._stores.values())

    def retain(self, places: list[int]) -> None:
        self.store.retain(places)


def count_unread(unread: list[int], budgets: list[int], known: list[int]) -> list[int]:
    """Return how many tokens each row reads before a draft: none if it does not draft, but prompts are read together.

    unread: committed tokens that the store lacks, known: those that it has.
    """
    return [count if budget or not length else 0 for count, budget, length in zip(unread, budgets, known, strict=True)]
