"""What a drafter's own decoder layers need: positions, masks and KV, through the same attention function as the target's."""

import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from specbench.decoding.kv_store import KVStore
from specbench.decoding.masks import ChainBias, share, widen
from specbench.decoding.runner import Runner
from specbench.decoding.static import StaticPass
from specbench.errors import InputError


class LayerPass:
    """One pass through a drafter's layers: its store and an explicit mask (None: causal if `first`, else all visible)."""

    def __init__(self, store: KVStore, count: int, mask: Tensor | None, first: bool = False) -> None:
        self.store, self.sizes = store, [count]
        self.first = first
        self._mask = mask
        self._shared: dict[int, Tensor] = {}

    def get_mask(self, layer: int, window: int | None, heads: int = 1) -> Tensor | None:
        """Return the mask as the target's pass does."""
        if self._mask is None:
            return None
        if heads not in self._shared:
            self._shared[heads] = share(self._mask, heads)
        return self._shared[heads]


class DraftKV:
    """Keys and values of a drafter's layers for one sequence: committed tokens, then the levels of the tree until `drop`.

    runner: of the layers. Passes have a fixed shape where it asks for that, except over a prompt.
    """

    def __init__(self, capacity: int, bias: ChainBias, runner: Runner[Tensor] | None = None) -> None:
        self.store, self._bias, self._runner = KVStore(1, capacity), bias, runner
        self.length = 0  # committed tokens

    @property
    def capacity(self) -> int:
        return self.store.capacity

    def clear(self) -> None:
        self.store.clear()
        self.length = 0

    def build_token_pass(self, count: int) -> LayerPass | StaticPass:
        """Return the pass of `count` further committed tokens; call `keep` after it."""
        past = self.length
        if self._is_static(count):
            return self._lay_out(self._bias.build_chain_mask(count, past))
        mask = self._bias.build_chain_mask(count, past) if past and count > 1 else None
        return LayerPass(self.store, count, mask, first=past == 0)

    def keep(self, count: int) -> None:
        """Commit the tokens of a token pass."""
        self.stack(count)
        self.length += count

    def build_level_pass(self, visible: Tensor) -> LayerPass | StaticPass:
        """Return the pass of the tree's next level. visible (N, M) bool: the tree entries, its own last, that each node sees."""
        mask = self._bias.build_visible_mask(self.length, visible)
        if self._is_static(len(visible)):
            return self._lay_out(mask)
        return LayerPass(self.store, len(visible), mask)

    def _is_static(self, count: int) -> bool:
        return self._runner is not None and self.length > 0 and self._runner.is_static(count)

    def _lay_out(self, mask: Tensor) -> StaticPass:
        """mask (N, S) of the filled entries."""
        count = len(mask)
        self.store.reserve(count)
        slots = self._bias.number(self.store.lengths[0], count)
        return StaticPass(self.store.layers, slots, {(None, None): widen(mask, self.store.bucket)}, reduces=count == 1)

    def stack(self, count: int) -> None:
        """Keep the entries of a level for the levels below it."""
        self.store.keep(0, range(count))

    def drop(self) -> None:
        """Remove the tree."""
        self.store.rewind(0, self.length)


class Rotary:
    """A table of cos and sin by position. Raises InputError for settings that give no finite angles."""

    def __init__(self, config: LlamaConfig, positions: int, like: Tensor) -> None:
        rotary = LlamaRotaryEmbedding(config).to(like.device)
        self.cos, self.sin = (x[0] for x in rotary(like, torch.arange(positions, device=like.device)[None]))
        if not (self.cos.isfinite().all() and self.sin.isfinite().all()):
            raise InputError(f"rope_parameters={config.rope_parameters}: its angles are not finite")

    def get_cos_sin(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """(N,) -> cos and sin, (1, N, D) each."""
        return self.cos[positions][None], self.sin[positions][None]
