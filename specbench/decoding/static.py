"""A forward of fixed shape: everything its layers need is a tensor, so it can be compiled, or captured on a GPU.

The bucket's entries of the KV store are read whole; new ones are written through an index tensor; masks hide the rest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specbench.decoding.kv_store import KVStore, Layer
from specbench.decoding.masks import EVERYTHING, ChainBias, Reach, widen
from specbench.decoding.tree import DraftTree

SHARING = 4  # query heads per key-value head from which on matrix products are faster, as reductions read the keys for each


@dataclass(frozen=True)
class StaticPass:
    """The tensors of one forward.

    layers: keys and values by layer, (B, heads, S, D) each. slots (B, N): the entries that new nodes are written to. masks: by
    reach, (B, N, S) each. reduces: one node attends in one fused reduction, which a compiler makes the fastest way.
    """

    layers: Mapping[int, Layer]
    slots: Tensor
    masks: Mapping[tuple[int | None, int | None], Tensor]
    chunks: Sequence[int | None] = ()
    reduces: bool = False

    def write(self, layer: int, key: Tensor, value: Tensor) -> Layer:
        """Write new entries, (B, heads, N, D) each; return the bucket."""
        keys, values = self.layers[layer]
        _write(keys, key, self.slots)
        _write(values, value, self.slots)
        return keys, values

    def get_mask(self, layer: int, window: int | None) -> Tensor:
        return self.masks[window, self.chunks[layer] if self.chunks else None]

    def attend(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor,
        scaling: float | None,
        softcap: float | None,
        sinks: Tensor | None,
    ) -> Tensor:
        """query (B, heads, N, D) -> (B, heads, N, D); the softmax is float32. Arguments as in `attention.attend`."""
        batch, heads, nodes, width = query.shape
        groups, entries = keys.shape[1:3]  # query heads that share a key-value head are further rows of one product
        rows = query.reshape(batch, groups, -1, width)
        reduces = self.reduces and rows.shape[2] < SHARING
        scale = width**-0.5 if scaling is None else scaling
        if query.dtype == torch.float16:  # whose products may overflow
            rows, scale = rows * scale, 1.0
        scores = (_reduce_keys(rows, keys) if reduces else (rows @ keys.mT).to(_widen(query.dtype))) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        scores = scores.view(batch, heads, nodes, entries) + mask[:, None]
        if sinks is not None:
            sinks = sinks.to(scores.dtype)[:, None, None].expand(batch, heads, nodes, 1)
            scores = torch.cat([scores, sinks], dim=-1)
        weights = (scores - scores.amax(dim=-1, keepdim=True)).exp()
        total = weights.sum(dim=-1, keepdim=True)
        weights = weights[..., :entries].reshape(batch, groups, -1, entries)
        out = _reduce_values(weights, values) if reduces else weights.to(values.dtype) @ values
        return (out.view(batch, heads, nodes, -1) / total).to(values.dtype)


def _write(entries: Tensor, new: Tensor, slots: Tensor) -> None:
    if len(slots) == 1:
        entries.index_copy_(2, slots[0], new)
    else:
        entries.scatter_(2, slots[:, None, :, None].expand_as(new), new)


def _widen(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _reduce_keys(rows: Tensor, keys: Tensor) -> Tensor:
    """rows (B, G, n, D), keys (B, G, S, D) -> (B, G, n, S)."""
    wide = _widen(rows.dtype)
    return (rows.to(wide)[..., None, :] * keys.to(wide)[:, :, None]).sum(dim=-1)


def _reduce_values(weights: Tensor, values: Tensor) -> Tensor:
    """weights (B, G, n, S), values (B, G, S, D) -> (B, G, n, D)."""
    return (weights[..., None] * values.to(weights.dtype)[:, :, None]).sum(dim=-2)


def lay_out(
    store: KVStore, trees: list[DraftTree], bias: ChainBias, reaches: Sequence[Reach], chunks: Sequence[int | None]
) -> StaticPass:
    """Return the pass of one tree per row of a store whose layers have all written; its bucket grows as needed."""
    nodes = max(map(len, trees))
    store.reserve(nodes)
    slots = bias.number(store.lengths[0], nodes)
    if len(trees) > 1:
        slots = bias.number(0, nodes) + bias.locate(store.lengths)
    masks = {(reach.window, reach.chunk): _lay_mask(store, trees, bias, reach) for reach in reaches}
    return StaticPass(store.layers, slots, masks, chunks, reduces=nodes == 1)


def _lay_mask(store: KVStore, trees: list[DraftTree], bias: ChainBias, reach: Reach) -> Tensor:
    """(B, N, bucket)."""
    longest = max(length + len(tree) for length, tree in zip(store.lengths, trees, strict=True))
    reach = Reach(*(None if limit is None or longest <= limit else limit for limit in reach))
    if reach != EVERYTHING or len(trees) > 1:
        return bias.build_padded_mask(store.lengths, trees, reach, store.bucket)
    if len(trees[0]) == 1:
        return bias.build_node_mask(longest, store.bucket)
    return widen(bias.build_tree_mask(trees[0], store.lengths[0])[None], store.bucket)
