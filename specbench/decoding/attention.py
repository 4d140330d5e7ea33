"""The attention function that unmodified transformers models call: draft-tree attention over our own KV store."""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from specbench.decoding.kv_store import KVStore
from specbench.decoding.tree import DraftTree
from specbench.errors import InputError

NAME = "specbench"


class ForwardPass:
    """What every layer of one forward needs: where new entries are written, and which entries each node sees."""

    def __init__(self, store: KVStore, trees: list[DraftTree], bias: "ChainBias") -> None:
        self.store, self.trees, self._bias = store, trees, bias
        self.sizes = [len(tree) for tree in trees]
        self.single = len(trees) == 1
        self.first = self.single and store.lengths[0] == 0 and trees[0].linear
        self._masks: dict[int | None, Tensor | None] = {}

    def get_mask(self, window: int | None) -> Tensor | None:
        """Return the additive mask, broadcastable to (B, heads, N, S); None if all is visible, or causal (see `first`)."""
        longest = max(length + size for length, size in zip(self.store.lengths, self.sizes, strict=True))
        if window is not None and longest <= window:
            window = None
        if window not in self._masks:
            self._masks[window] = self._build_mask(window)
        return self._masks[window]

    def _build_mask(self, window: int | None) -> Tensor | None:
        if self.single and window is None:
            if self.sizes[0] == 1 or self.first:
                return None
            return align_on_cuda(self._bias.build_tree_mask(self.trees[0], self.store.lengths[0]))
        return _build_padded_mask(self.store.lengths, self.trees, window, self._bias.dtype)


def align_on_cuda(mask: Tensor) -> Tensor:
    """Return (N, S) as given, or on CUDA aligned for its kernels."""
    return align_mask(mask) if mask.is_cuda else mask


def align_mask(mask: Tensor) -> Tensor:
    """Copy (N, S) so that CUDA's kernels can read it: row stride a multiple of 8 entries, start aligned to 16 bytes."""
    nodes, entries = mask.shape
    return mask.new_zeros(nodes, -(-entries // 8) * 8)[:, :entries].copy_(mask)


class ChainBias:
    """Masks of single sequences as slices of one buffer, in which the past is visible and new nodes see a causal triangle."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device
        self._past, self._nodes = 0, 0
        self._chain = self._tree = torch.empty(0)

    def build_tree_mask(self, tree: DraftTree, past: int) -> Tensor:
        """(N, past + N) additive mask of one tree after `past` committed tokens."""
        return self.build_chain_mask(len(tree), past) if tree.linear else self.build_visible_mask(past, tree.ancestors)

    def build_chain_mask(self, nodes: int, past: int) -> Tensor:
        """(N, past + N): every node sees itself and all before it."""
        self._grow(past, nodes)
        return self._chain[:nodes, self._past - past : self._past + nodes]

    def build_visible_mask(self, past: int, visible: Tensor) -> Tensor:
        """(N, past + M): each node sees the whole past, and of the last M entries those in `visible` (N, M) bool."""
        nodes, entries = visible.shape
        self._grow(past, entries)
        self._tree[:nodes, self._past : self._past + entries].zero_().masked_fill_(~visible, float("-inf"))
        return self._tree[:nodes, self._past - past : self._past + entries]

    def _grow(self, past: int, nodes: int) -> None:
        if past <= self._past and nodes <= self._nodes:
            return
        self._past, self._nodes = max(past, 2 * self._past, 1024), max(nodes, self._nodes, 64)
        triangle = torch.full((self._nodes, self._nodes), float("-inf"), dtype=self.dtype, device=self.device).triu_(1)
        visible = torch.zeros(self._nodes, self._past, dtype=self.dtype, device=self.device)
        self._chain = torch.cat([visible, triangle], dim=1)
        self._tree = self._chain.clone()


def _build_padded_mask(lengths: list[int], trees: list[DraftTree], window: int | None, dtype: torch.dtype) -> Tensor:
    """(B, 1, N, S) mask of the general case, rows of different lengths; padding nodes see only entry 0."""
    nodes = max(len(tree) for tree in trees)
    entries = max(length + len(tree) for length, tree in zip(lengths, trees, strict=True))
    visible = torch.zeros(len(trees), 1, nodes, entries, dtype=torch.bool, device=trees[0].tokens.device)
    visible[:, :, :, 0] = True
    for row, (length, tree) in enumerate(zip(lengths, trees, strict=True)):
        past = torch.ones(len(tree), length, dtype=torch.bool, device=visible.device)
        seen = torch.cat([past, tree.ancestors], dim=1)  # (n, length + n)
        if window is not None:
            positions = torch.cat([torch.arange(length, device=visible.device), length + tree.depths])
            seen = seen & (positions[None, :] > positions[length:, None] - window)
        visible[row, 0, : len(tree), : length + len(tree)] = seen
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, float("-inf"))


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    forward_pass: ForwardPass | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Attend: query (B, heads, N, D), key and value (B, key-value heads, N, D), rotated -> (B, N, heads, D).

    Further keywords are what transformers passes to every attention function; decoding uses no dropout. Raises InputError for
    attention sinks and position biases, which are not supported.
    """
    assert forward_pass is not None, "the model was called outside LanguageModel.forward"
    if s_aux is not None or position_bias is not None:
        raise InputError("the model's attention has sinks or position biases, which are not supported")
    keys, values = forward_pass.store.write(module.layer_idx, key, value, forward_pass.sizes)  # type: ignore[arg-type]
    mask = forward_pass.get_mask(sliding_window)
    if mask is not None and mask.device != query.device:  # a model spread over devices
        mask = mask.to(query.device)
    grouped = query.shape[1] != keys.shape[1]
    if softcap is not None:
        return _attend_capped(query, keys, values, mask, forward_pass.first, scaling, softcap).transpose(1, 2), None
    causal = forward_pass.first and mask is None and query.shape[2] > 1
    if grouped and not causal:
        return _attend_grouped(query, keys, values, mask, scaling).transpose(1, 2), None
    out = scaled_dot_product_attention(query, keys, values, mask, is_causal=causal, scale=scaling, enable_gqa=grouped)
    return out.transpose(1, 2), None


def _attend_grouped(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    """Attend with the query heads that share a key-value head as further rows: KV is read once, and every kernel supports it.

    CUDA's fast kernels take a mask or grouped heads, not both; baseline and methods must run the same one.
    """
    batch, heads, nodes, width = query.shape
    shared = heads // keys.shape[1]
    rows = query.reshape(batch, heads // shared, shared * nodes, width)
    if mask is not None:
        mask = mask.repeat(*[1] * (mask.ndim - 2), shared, 1)
    return scaled_dot_product_attention(rows, keys, values, mask, scale=scaling).reshape(batch, heads, nodes, -1)


def _attend_capped(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, causal: bool, scaling: float | None, softcap: float
) -> Tensor:
    """Attend with scores softcap * tanh(score / softcap), as Gemma 2 does; the softmax is float32."""
    repeats = query.shape[1] // keys.shape[1]
    keys, values = (x.repeat_interleave(repeats, dim=1) for x in (keys, values))
    scores = query @ keys.mT * (scaling or query.shape[-1] ** -0.5)  # (B, heads, N, S)
    scores = softcap * torch.tanh(scores / softcap)
    if causal and mask is None:
        mask = torch.full(scores.shape[-2:], float("-inf"), dtype=scores.dtype, device=scores.device).triu_(1)
    if mask is not None:
        scores = scores + mask
    return scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(values.dtype) @ values


AttentionInterface.register(NAME, attend)
