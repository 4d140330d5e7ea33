"""The KV store against a list of entries per row."""

import random

import pytest
import torch

from specbench.decoding.kv_store import KVStore
from tests.random_trees import random_tree, way

LAYERS, HEADS, WIDTH = 2, 3, 4


def entries(batch: int, nodes: int) -> list[torch.Tensor]:
    """One random (B, heads, N, D) per layer."""
    return [torch.randn(batch, HEADS, nodes, WIDTH) for _ in range(LAYERS)]


def check(store: KVStore, kept: list[list[list[torch.Tensor]]], filled: list[torch.Tensor], sign: int) -> None:
    """Committed rows are where they belong. kept: per layer and row the entries; filled: per layer (B, heads, S, D)."""
    for layer in range(LAYERS):
        for row, length in enumerate(store.lengths):
            assert length == len(kept[layer][row])
            for at, entry in enumerate(kept[layer][row]):
                assert torch.equal(filled[layer][row, :, at], sign * entry), f"layer {layer} row {row} entry {at}"


@pytest.mark.parametrize("batch, seed", [(1, 0), (1, 1), (3, 2), (3, 3)])
def test_writes_keeps_and_rewinds_equal_lists(batch: int, seed: int) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    store = KVStore(batch, capacity=80)
    kept: list[list[list[torch.Tensor]]] = [[[] for _ in range(batch)] for _ in range(LAYERS)]
    for _ in range(12):
        trees = [random_tree(rng, rng.randint(1, 6), 9) for _ in range(batch)]
        sizes = [len(tree) for tree in trees]
        new = entries(batch, max(sizes))
        filled = [store.write(layer, new[layer], -new[layer], sizes) for layer in range(LAYERS)]
        check(store, kept, [keys for keys, _ in filled], 1)
        check(store, kept, [values for _, values in filled], -1)
        assert filled[0][0].shape == (batch, HEADS, max(n + s for n, s in zip(store.lengths, sizes, strict=True)), WIDTH)
        for row, tree in enumerate(trees):
            path = way(tree, rng.randrange(len(tree)))
            if rng.random() < 0.2:
                continue  # this row commits nothing
            store.keep(row, path)
            for layer in range(LAYERS):
                kept[layer][row] += [new[layer][row, :, node] for node in path]
        if rng.random() < 0.4:
            row = rng.randrange(batch)
            length = rng.randint(0, store.lengths[row] + 2)
            store.rewind(row, length)
            for layer in range(LAYERS):
                del kept[layer][row][length:]


def uneven() -> tuple[KVStore, torch.Tensor]:
    """Two rows of four and of two committed entries, and what was written, (2, heads, 4, D)."""
    store, first = KVStore(2, capacity=10), torch.randn(2, HEADS, 4, WIDTH)
    store.write(0, first, first, [4, 2])
    store.keep(0, range(4))
    store.keep(1, range(2))
    return store, first


def test_new_entries_lie_behind_the_committed_ones_of_their_own_row() -> None:
    store, _ = uneven()
    new = torch.randn(2, HEADS, 3, WIDTH)
    keys, _ = store.write(0, new, new, [1, 3])
    assert keys.shape[2] == 5, "4 + 1 and 2 + 3 entries"
    assert torch.equal(keys[0, :, 4:5], new[0, :, :1]) and torch.equal(keys[1, :, 2:5], new[1])


def test_clear_forgets_sequences_and_keeps_the_memory() -> None:
    store = KVStore(1, capacity=64)
    assert store.bytes == 0, "sizes are known when a layer first writes"
    new = torch.randn(1, HEADS, 5, WIDTH, dtype=torch.float64)
    keys, _ = store.write(0, new, new, [5])
    store.keep(0, range(5))
    assert store.bytes == 2 * HEADS * 64 * WIDTH * 8, "(keys, values) x heads x capacity x width x 8 bytes"
    store.clear()
    again, _ = store.write(0, new, new, [5])
    assert store.lengths == [0] and again.data_ptr() == keys.data_ptr()


def test_a_row_is_a_store_of_its_own_over_the_same_memory() -> None:
    store, first = uneven()
    view, new = store.view_row(1), torch.randn(1, HEADS, 3, WIDTH)
    keys, _ = view.write(0, new, new, [3])
    assert torch.equal(keys[0, :, :2], first[1, :, :2]) and torch.equal(keys[0, :, 2:5], new[0])
    view.keep(0, range(3))
    assert store.lengths == [4, 2], "what is kept there is not committed here"
    over = torch.randn(2, HEADS, 1, WIDTH)
    committed, _ = store.write(0, over, over, [1, 1])
    assert torch.equal(committed[1, :, 2:3], over[1]) and torch.equal(committed[0, :, :4], first[0])


def test_retained_rows_move_together_and_their_views_follow() -> None:
    store, first = uneven()
    view = store.view_row(1)
    store.retain([1])
    assert store.lengths == [2]
    new = torch.randn(1, HEADS, 2, WIDTH)
    keys, values = store.write(0, new, new, [2])
    assert keys.shape[0] == 1 and torch.equal(keys[0, :, :2], first[1, :, :2]) and torch.equal(values[0, :, 2:4], new[0])
    assert torch.equal(view.layers[0][0][0, :, :2], first[1, :, :2]), "a view of row 1, now at place 0"
    store.clear()
    both = torch.randn(2, HEADS, 3, WIDTH)
    assert store.lengths == [0, 0] and store.write(0, both, both, [3, 3])[0].shape[0] == 2, "every row is back"
