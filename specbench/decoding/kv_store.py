"""Keys and values of the sequences that a model decodes: preallocated, written in place, compacted on commit.

Row b holds `lengths[b]` committed tokens, followed by the nodes of the draft tree in flight until `keep` selects the path.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


class KVStore:
    """Two tensors (B, key-value heads, capacity, D) per layer, allocated at the layer's first write, which gives the sizes."""

    def __init__(self, batch: int, capacity: int) -> None:
        self.capacity = capacity
        self.lengths = [0] * batch
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}

    def clear(self) -> None:
        """Drop every sequence and keep the memory."""
        self.lengths = [0] * len(self.lengths)

    def write(self, layer: int, key: Tensor, value: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor]:
        """Write `sizes[b]` new entries of row b after its committed ones; return all filled entries, (B, heads, S, D) each.

        key, value: (B, heads, N, D) with N >= max(sizes).
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
        """Commit the nodes of `path` (tree indices, ascending from the root's 0) of those written last; drop the rest."""
        start = self.lengths[row]
        if path[-1] != len(path) - 1:
            self._move(row, start, path)
        self.lengths[row] = start + len(path)

    def _move(self, row: int, start: int, path: Sequence[int]) -> None:
        for tensor in (*self._keys.values(), *self._values.values()):
            picked = tensor[row].index_select(1, torch.tensor(list(path), device=tensor.device) + start)
            tensor[row, :, start : start + len(path)] = picked

    def rewind(self, row: int, length: int) -> None:
        """Drop every entry of the row from `length` on."""
        self.lengths[row] = min(length, self.lengths[row])

    def view_row(self, row: int) -> "KVStore":
        """Return a store of one sequence over the same memory; the caller maintains its length."""
        view = KVStore(1, self.capacity)
        view.lengths = [self.lengths[row]]
        view._keys, view._values = ({layer: t[row : row + 1] for layer, t in of.items()} for of in (self._keys, self._values))
        return view

    @property
    def layers(self) -> int:
        """Number of layers that have written."""
        return len(self._keys)

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self._keys.values(), *self._values.values()))


def _allocate(like: Tensor, capacity: int) -> Tensor:
    batch, heads, _, width = like.shape
    return torch.zeros(batch, heads, capacity, width, dtype=like.dtype, device=like.device)
