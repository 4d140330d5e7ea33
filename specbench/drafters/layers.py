"""What a drafter's own decoder layers need: positions, masks and KV, through the same attention function as the target's."""

import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from specbench.decoding.attention import ChainBias, align_on_cuda
from specbench.decoding.kv_store import KVStore


class LayerPass:
    """One pass through a drafter's layers: where the new entries go, and an explicit mask (None: plainly causal, or all)."""

    def __init__(self, store: KVStore, nodes: int, mask: Tensor | None, first: bool) -> None:
        self.store, self.sizes, self._mask, self.first = store, [nodes], mask, first

    def get_mask(self, window: int | None) -> Tensor | None:
        return self._mask


class DraftKV:
    """Keys and values of a drafter's layers for one sequence.

    Real tokens stay; the levels of the tree in the making lie behind them until `drop`.
    """

    def __init__(self, capacity: int, bias: ChainBias) -> None:
        self.store, self.length, self._bias = KVStore(1, capacity), 0, bias

    @property
    def capacity(self) -> int:
        return self.store.capacity

    def clear(self) -> None:
        self.store.clear()
        self.length = 0

    def build_token_pass(self, nodes: int) -> LayerPass:
        """The pass of `nodes` further real tokens; it counts once `keep` was called."""
        past = self.length
        mask = align_on_cuda(self._bias.build_chain_mask(nodes, past)) if past and nodes > 1 else None
        return LayerPass(self.store, nodes, mask, first=past == 0)

    def keep(self, nodes: int) -> None:
        self.store.keep(0, range(nodes))
        self.length += nodes

    def build_level_pass(self, visible: Tensor) -> LayerPass:
        """The pass of a tree's next level. visible (N, M) bool: which entries of the tree, its own last, each node sees."""
        return LayerPass(
            self.store, len(visible), align_on_cuda(self._bias.build_visible_mask(self.length, visible)), first=False
        )

    def stack(self, nodes: int) -> None:
        """The level's entries stay for the levels below it."""
        self.store.keep(0, range(nodes))

    def drop(self) -> None:
        """Forget the tree."""
        self.store.rewind(0, self.length)


class Rotary:
    """cos and sin of positions (N,), (1, N, D) each, from a table that is made once."""

    def __init__(self, config: LlamaConfig, positions: int, like: Tensor) -> None:
        rotary = LlamaRotaryEmbedding(config).to(like.device)
        self.cos, self.sin = (x[0] for x in rotary(like, torch.arange(positions, device=like.device)[None]))

    def get_cos_sin(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """(N,) -> cos and sin, (1, N, D) each."""
        return self.cos[positions][None], self.sin[positions][None]
