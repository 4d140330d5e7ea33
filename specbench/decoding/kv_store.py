"""Keys and values of the sequences a model is decoding: preallocated, written in place, compacted on commit.

Row b holds `lengths[b]` committed tokens; the nodes of the draft tree in flight lie behind them until `keep` decides.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


class KVStore:
    """Per layer two tensors (B, key-value heads, capacity, D), made when the layer first hands over its own sizes."""

    def __init__(self, batch: int, capacity: int) -> None:
        self.capacity = capacity
        self.lengths = [0] * batch
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}

    def clear(self) -> None:
        """Forget every sequence; the memory stays."""
        self.lengths = [0] * len(self.lengths)

    def write(self, layer: int, key: Tensor, value: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor]:
        """Put `sizes[b]` new entries of row b behind its committed ones; return all that is filled, (B, heads, S, D) each.

        key, value (B, heads, N, D) with N >= max(sizes).
        """
        if layer not in self._keys:
            self._keys[layer], self._values[layer] = (_allocate(x, self.capacity) for x in (key, value))
        keys, values = self._keys[layer], self._values[layer]
        for row, (length, size) in enumerate(zip(self.lengths, sizes, strict=True)):
            keys[row, :, length : length + size] = key[row, :, :size]
            values[row, :, length : length + size] = value[row, :, :size]
        filled = max(length + size for length, size in zip(self.lengths, sizes, strict=True))
        return keys[:, :, :filled], values[:, :, :filled]

    def keep(self, row: int, path: Sequence[int]) -> None:
        """Of the nodes written last, keep those of `path` (indices in the tree, rising from the root's 0) and drop the rest."""
        start = self.lengths[row]
        if path[-1] != len(path) - 1:
            self._move(row, start, path)
        self.lengths[row] = start + len(path)

    def _move(self, row: int, start: int, path: Sequence[int]) -> None:
        for store in (self._keys, self._values):
            for tensor in store.values():
                picked = tensor[row].index_select(1, torch.tensor(list(path), device=tensor.device) + start)
                tensor[row, :, start : start + len(path)] = picked

    def rewind(self, row: int, length: int) -> None:
        """Drop every entry of the row from `length` on."""
        self.lengths[row] = min(length, self.lengths[row])

    def view_row(self, row: int) -> "KVStore":
        """One sequence's entries as a store of its own over the same memory; its length is the caller's to keep up."""
        view = KVStore(1, self.capacity)
        view.lengths = [self.lengths[row]]
        view._keys, view._values = ({layer: t[row : row + 1] for layer, t in of.items()} for of in (self._keys, self._values))
        return view

    @property
    def layers(self) -> int:
        """How many have written here."""
        return len(self._keys)

    @property
    def bytes(self) -> int:
        return sum(t.nbytes for store in (self._keys, self._values) for t in store.values())


def _allocate(like: Tensor, capacity: int) -> Tensor:
    batch, heads, _, width = like.shape
    return torch.zeros(batch, heads, capacity, width, dtype=like.dtype, device=like.device)
