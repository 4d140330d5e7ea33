"""The attention function that unmodified transformers models call: draft-tree attention over our own KV store."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from specbench.decoding.kv_store import KVStore
from specbench.decoding.masks import EVERYTHING, ChainBias, Reach, share
from specbench.decoding.static import StaticPass
from specbench.decoding.tree import DraftTree
from specbench.errors import InputError

NAME = "specbench"
WITHOUT_EFFECT = frozenset({"dropout", "is_causal", "position_ids", "use_cache"})  # on decoding one token after another


class ForwardPass:
    """What every layer of one forward needs: where new entries are written, and which entries each node sees.

    chunks: by layer, of a model that has any. reaches: collects those of the model's layers.
    """

    def __init__(
        self,
        store: KVStore,
        trees: list[DraftTree],
        bias: ChainBias,
        chunks: Sequence[int | None] = (),
        reaches: set[Reach] | None = None,
    ) -> None:
        self.store, self.trees, self._bias = store, trees, bias
        self._chunks = chunks
        self._reaches = set() if reaches is None else reaches
        self.sizes = [len(tree) for tree in trees]
        self.single = len(trees) == 1
        self.first = not any(store.lengths) and all(tree.linear for tree in trees)
        self._longest = max(length + size for length, size in zip(store.lengths, self.sizes, strict=True))
        self._masks: dict[tuple[Reach, int], Tensor | None] = {}

    def get_mask(self, layer: int, window: int | None, heads: int = 1) -> Tensor | None:
        """Return the additive mask, broadcastable to (B, heads, N, S); None if all is visible, or causal (see `first`).

        heads: query heads that are rows of one product: (B, heads, heads * N, S).
        """
        limits = Reach(window, self._chunks[layer] if self._chunks else None)
        self._reaches.add(limits)
        reach = Reach(*(None if limit is None or self._longest <= limit else limit for limit in limits))
        if (reach, heads) not in self._masks:
            mask = self._build_mask(reach)
            self._masks[reach, heads] = None if mask is None else share(mask, heads)
        return self._masks[reach, heads]

    def _build_mask(self, reach: Reach) -> Tensor | None:
        if reach == EVERYTHING and (self.first or (self.single and self.sizes[0] == 1)):
            return None
        if reach == EVERYTHING and self.single:
            return self._bias.build_tree_mask(self.trees[0], self.store.lengths[0])
        return self._bias.build_padded_mask(self.store.lengths, self.trees, reach, self._longest)[:, None]


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    forward_pass: ForwardPass | StaticPass | None = None,
    **others: object,
) -> tuple[Tensor, None]:
    """Attend: query (B, heads, N, D), key and value (B, key-value heads, N, D), rotated -> (B, N, heads, D).

    s_aux: attention sinks (heads,), see `_attend_explicitly`. Raises InputError if the model requires more of its attention,
    such as position biases or a choice of entries.
    """
    _refuse_others(forward_pass, attention_mask, others)
    assert forward_pass is not None
    layer: int = module.layer_idx  # type: ignore[assignment]
    if isinstance(forward_pass, StaticPass):
        keys, values = forward_pass.write(layer, key, value)
        seen = forward_pass.get_mask(layer, sliding_window)
        out = forward_pass.attend(query, keys, values, seen, scaling, softcap, s_aux)
        return out.transpose(1, 2).contiguous(), None
    keys, values = forward_pass.store.write(layer, key, value, forward_pass.sizes)
    explicit, heads = softcap is not None or s_aux is not None, query.shape[1] // keys.shape[1]
    mask = forward_pass.get_mask(layer, sliding_window, 1 if explicit else heads)
    if mask is not None and mask.device != query.device:  # a model spread over devices
        mask = mask.to(query.device)
    causal = forward_pass.first and mask is None and query.shape[2] > 1
    if explicit:
        out = _attend_explicitly(query, keys, values, mask, forward_pass.first, scaling, softcap, s_aux)
    elif heads > 1 and not causal:
        out = _attend_grouped(query, keys, values, mask, scaling)
    else:
        out = scaled_dot_product_attention(query, keys, values, mask, is_causal=causal, scale=scaling, enable_gqa=heads > 1)
    return out.transpose(1, 2).contiguous(), None  # some models take views of it


def _refuse_others(forward_pass: ForwardPass | StaticPass | None, mask: Tensor | None, others: Mapping[str, object]) -> None:
    """Raise InputError for a model that does not pass the forward pass on, or that passes its own mask or arguments."""
    if forward_pass is None:
        raise InputError("it does not pass its keyword arguments on to its attention")
    if mask is not None:
        raise InputError("it builds its own attention mask")
    for name, value in others.items():
        if value is not None and name not in WITHOUT_EFFECT and not name.startswith("output_"):
            raise InputError(f"it passes {name} to its attention, which is not supported")


def _attend_grouped(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    """Attend with query heads that share a key-value head as additional rows: KV is read once, and every kernel supports it.

    mask: of all these rows, see `share`. CUDA's fast kernels take a mask or grouped heads, not both; baseline and methods must
    run the same one.
    """
    batch, heads, nodes, width = query.shape
    shared = heads // keys.shape[1]
    rows = query.reshape(batch, heads // shared, shared * nodes, width)
    return scaled_dot_product_attention(rows, keys, values, mask, scale=scaling).reshape(batch, heads, nodes, -1)


def _attend_explicitly(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    causal: bool,
    scaling: float | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attend with scores softcap * tanh(score / softcap), as Gemma 2 does, or with sinks; the softmax is float32.

    sinks (heads,): a logit per head that takes its share of the softmax and adds nothing (Xiao et al. 2024; GPT-OSS learns it).
    """
    repeats = query.shape[1] // keys.shape[1]
    keys, values = (x.repeat_interleave(repeats, dim=1) for x in (keys, values))
    scores = (query * (scaling or query.shape[-1] ** -0.5)) @ keys.mT  # (B, heads, N, S); unscaled, float16 may overflow
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if causal and mask is None:
        mask = torch.full(scores.shape[-2:], float("-inf"), dtype=scores.dtype, device=scores.device).triu_(1)
    if mask is not None:
        scores = scores + mask
    if sinks is not None:
        scores = torch.cat([scores, sinks.to(scores.dtype)[:, None, None].expand(*scores.shape[:-1], 1)], dim=-1)
    weights = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    return weights[..., : keys.shape[2]].to(values.dtype) @ values


AttentionInterface.register(NAME, attend)
