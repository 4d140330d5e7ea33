"""Keys and values of the sequences that a model decodes: preallocated, written in place, compacted on commit.

Row b holds `lengths[b]` committed tokens, followed by the nodes of the draft tree in flight until `keep` selects the path.

A forward of fixed shape attends to the first `bucket` entries of every row. They lie densely at the start of each layer's
buffer, (B, heads, bucket, D), as kernels copy anything else before they read it. The bucket grows with the sequences, in steps
of a sixteenth; its entries then move to their new places in the same buffer.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import prod

import torch
from torch import Tensor

from specbench.machine.devices import upload

STEP = 64  # entries: the least by which a bucket grows
Layer = tuple[Tensor, Tensor]  # keys and values, (B, heads, bucket, D) each


def round_up(entries: int) -> int:
    """Return the bucket's size for this many entries: larger by less than STEP or a sixteenth of them."""
    step = max(STEP, 1 << (entries.bit_length() - 5)) if entries >= STEP else STEP
    return -(-entries // step) * step


class _Memory:
    """The buffers of a batch's layers, each allocated at the layer's first write, which gives the sizes."""

    def __init__(self, batch: int, capacity: int) -> None:
        self.batch, self.capacity = batch, round_up(capacity)
        self.rows = list(range(batch))  # by place, the row that it was at first
        self.bucket = 0
        self.layers: dict[int, Layer] = {}  # views of the buffers
        self._buffers: dict[int, Layer] = {}

    @property
    def bytes(self) -> int:
        return sum(buffer.nbytes for pair in self._buffers.values() for buffer in pair)

    def clear(self, rows: int) -> None:
        self.bucket, self.rows = 0, list(range(rows))

    def retain(self, places: list[int]) -> None:
        """Keep only the rows at these places; they move together."""
        self.rows = [self.rows[place] for place in places]
        for layer, pair in self.layers.items() if self.bucket else ():  # else nothing has been written in this turn
            keys, values = (self._copy(buffer, old[places]) for buffer, old in zip(self._buffers[layer], pair, strict=True))
            self.layers[layer] = keys, values

    def _copy(self, buffer: Tensor, rows: Tensor) -> Tensor:
        view = _view(buffer, len(rows), self.bucket)
        return view.copy_(rows)

    def reserve(self, entries: int) -> None:
        """Grow the bucket to hold this many entries per row."""
        if entries > self.bucket:
            old, self.bucket = self.bucket, min(round_up(entries), self.capacity)
            for layer in self._buffers:
                self._lay_out(layer, old)

    def add_layer(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Allocate a layer for keys and values like these, (B, heads, N, D) each."""
        self._buffers[layer] = self._allocate(key), self._allocate(value)
        self._lay_out(layer, 0)

    def _allocate(self, like: Tensor) -> Tensor:
        return like.new_zeros(self.batch, like.shape[1], self.capacity, like.shape[3])

    def _lay_out(self, layer: int, filled: int) -> None:
        """Make the layer's views for the present bucket; the first `filled` entries move along.

        The others become zeros: what is masked is still multiplied, by 0, so a NaN of an earlier turn may not stay.
        """
        keys, values = (_view(buffer, len(self.rows), self.bucket) for buffer in self._buffers[layer])
        for place, new in enumerate((keys, values)):
            if filled:
                new[:, :, :filled] = self.layers[layer][place].clone()
            new[:, :, filled:] = 0
        self.layers[layer] = keys, values


def _view(buffer: Tensor, batch: int, bucket: int) -> Tensor:
    """Return the start of a buffer (rows, heads, capacity, D) as (B, heads, bucket, D)."""
    _, heads, _, width = buffer.shape
    return buffer.view(-1)[: prod((batch, heads, bucket, width))].view(batch, heads, bucket, width)


class KVStore:
    """The sequences of a batch. The sizes of keys and values may differ between layers."""

    def __init__(self, batch: int, capacity: int) -> None:
        self.batch, self.capacity = batch, capacity
        self.lengths = [0] * batch
        self._memory = _Memory(batch, capacity)
        self._row: int | None = None  # of a view of one sequence

    @property
    def bucket(self) -> int:
        return self._memory.bucket

    @property
    def is_part(self) -> bool:
        """Whether it is one row of a batch's memory, whose addresses are not those of the whole."""
        return self._row is not None and self._memory.batch > 1

    @property
    def layers(self) -> dict[int, Layer]:
        """The bucket's entries of each layer that has written: committed ones, those in flight, and meaningless ones."""
        if self._row is None:
            return self._memory.layers
        place = self._memory.rows.index(self._row)
        rows = slice(place, place + 1)
        return {layer: (keys[rows], values[rows]) for layer, (keys, values) in self._memory.layers.items()}

    @property
    def bytes(self) -> int:
        return self._memory.bytes

    @property
    def entry_bytes(self) -> int:
        """Bytes of one entry per row, all layers together."""
        return sum(tensor[:, :, 0].nbytes for pair in self.layers.values() for tensor in pair)

    def clear(self, rows: int | None = None) -> None:
        """Drop every sequence and keep the memory, for `rows` rows, at most the batch; None: for all."""
        count = self.batch if rows is None else rows
        self.lengths = [0] * count
        self._memory.clear(count)

    def retain(self, places: list[int]) -> None:
        """Keep only the rows at these places: the others have ended, and forwards run without them."""
        self.lengths = [self.lengths[place] for place in places]
        self._memory.retain(places)

    def has_room(self, nodes: int) -> bool:
        """Return whether every row has room for this many new entries, padding included."""
        return max(self.lengths) + nodes <= self.capacity

    def reserve(self, nodes: int) -> None:
        """Grow the bucket for this many new entries in every row."""
        self._memory.reserve(max(self.lengths) + nodes)

    def write(self, layer: int, key: Tensor, value: Tensor, sizes: list[int]) -> Layer:
        """Write `sizes[b]` new entries of row b after its committed ones; return all filled entries, (B, heads, S, D) each.

        key, value: (B, heads, N, D) with N >= max(sizes).
        """
        filled = max(length + size for length, size in zip(self.lengths, sizes, strict=True))
        self._memory.reserve(filled)
        if layer not in self._memory.layers:
            self._memory.add_layer(layer, key, value)
        keys, values = self.layers[layer]
        if len(set(self.lengths)) == 1:  # as for prompts: all rows at once, including the padding of shorter ones
            new = slice(self.lengths[0], filled)
            keys[:, :, new], values[:, :, new] = key[:, :, : max(sizes)], value[:, :, : max(sizes)]
        else:
            for row, (length, size) in enumerate(zip(self.lengths, sizes, strict=True)):
                keys[row, :, length : length + size] = key[row, :, :size]
                values[row, :, length : length + size] = value[row, :, :size]
        return keys[:, :, :filled], values[:, :, :filled]

    def keep(self, row: int, path: Sequence[int], nodes: Tensor | None = None) -> None:
        """Commit the nodes of `path` (tree indices, ascending from the root's 0) of those written last; drop the rest.

        nodes: the same path on the device, (A,) int64; None copies it there.
        """
        if path[-1] != len(path) - 1:
            self._move(row, torch.tensor(list(path)) if nodes is None else nodes)
        self.lengths[row] += len(path)

    def _move(self, row: int, nodes: Tensor) -> None:
        """Move the entries of some nodes to the front."""
        start, count = self.lengths[row], len(nodes)
        for tensor, places in self._pair_with(nodes + start):
            tensor[row, :, start : start + count] = tensor[row].index_select(1, places)

    def keep_all(self, paths: Mapping[int, Sequence[int]]) -> None:
        """Commit a path in several rows, as `keep` does in one; a single copy to the device says what moves in all of them."""
        moves = [
            (row, self.lengths[row] + place, self.lengths[row] + node)
            for row, path in paths.items()
            for place, node in enumerate(path)
            if node != place
        ]
        if moves:
            self._move_all(torch.tensor(moves).T)
        for row, path in paths.items():
            self.lengths[row] += len(path)

    def _move_all(self, moves: Tensor) -> None:
        """moves (3, M) int64, on the host: rows, then where their entries go, then where these are."""
        (like, _), *_ = self.layers.values()
        for tensor, (rows, to, places) in self._pair_with(upload(moves, like.device)):
            tensor[rows, :, to] = tensor[rows, :, places]

    def _pair_with(self, index: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the keys and the values of each layer with the index, which is copied once per device."""
        copies: dict[torch.device, Tensor] = {}
        for tensor in (tensor for pair in self.layers.values() for tensor in pair):
            if tensor.device not in copies:
                copies[tensor.device] = index.to(tensor.device)
            yield tensor, copies[tensor.device]

    def rewind(self, row: int, length: int) -> None:
        """Drop every entry of the row from `length` on."""
        self.lengths[row] = min(length, self.lengths[row])

    def view_row(self, row: int) -> "KVStore":
        """Return a store of one sequence over the same memory; the caller maintains its length."""
        view = KVStore.__new__(KVStore)
        view.batch, view.capacity, view.lengths = 1, self.capacity, [self.lengths[row]]
        view._memory, view._row = self._memory, row
        return view
