"""Drafters with their own keys and values."""

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from specbench.decoding.drafter import Drafter, DraftWork, SequenceContext
from specbench.decoding.kv_store import KVStore
from specbench.decoding.language_model import TargetOutput
from specbench.decoding.sampling import Sampling
from specbench.decoding.verify import Verification
from specbench.drafters.layers import DraftKV

S = TypeVar("S", KVStore, DraftKV)


class KeepingDrafter(Drafter, Generic[S]):
    """A drafter with a store for the batch, in which a sequence has the row of its place.

    The store is cleared at each turn and replaced when it is too small.
    """

    store: S

    def create_store(self, capacity: int, batch: int = 1) -> S:
        raise NotImplementedError

    def prepare(self, prompts: list[Tensor], samplings: list[Sampling], capacity: int) -> None:
        batch, kept = len(prompts), getattr(self, "store", None)
        if kept is None or kept.batch < batch or kept.capacity < capacity:
            self.store = self.create_store(capacity, batch)

    def begin(self, prompts: list[list[int]], outs: list[TargetOutput], contexts: list[SequenceContext]) -> list[Any]:
        self.store.clear(len(prompts))
        return super().begin(prompts, outs, contexts)

    def count_bytes(self) -> int:
        """Return the bytes of the store, 0 before there is one."""
        return self.store.bytes if hasattr(self, "store") else 0

    def retain(self, places: list[int]) -> None:
        self.store.retain(places)


@dataclass
class UnreadState:
    """hidden (n, taps * H): the target's hidden states not read yet; the root (1,) was chosen from the last of them."""

    context: SequenceContext
    hidden: Tensor
    root: Tensor

    @property
    def work(self) -> DraftWork:
        return self.context.work

    def take(self, count: int) -> Tensor:
        """Return the first `count` hidden states, which are read now."""
        taken, self.hidden = self.hidden[:count], self.hidden[count:]
        return taken

    def observe(self, out: TargetOutput, verified: Verification) -> None:
        """Add those of the committed path."""
        self.hidden = torch.cat([self.hidden, out.hidden.index_select(0, verified.path_ids)])
        self.root = verified.token_ids[-1:]


def count_unread(unread: list[int], budgets: list[int], known: list[int]) -> list[int]:
    """Return how many tokens each row reads before a draft: none if it does not draft, but prompts are read together.

    unread: committed tokens that the store lacks, known: those that it has.
    """
    return [count if budget or not length else 0 for count, budget, length in zip(unread, budgets, known, strict=True)]
