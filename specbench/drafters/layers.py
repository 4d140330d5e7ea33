"""What a drafter's own decoder layers need: positions, masks and KV, through the same attention function as the target's."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from specbench.decoding.kv_store import KVStore
from specbench.decoding.masks import ChainBias, share, widen
from specbench.decoding.runner import Runner
from specbench.decoding.static import StaticPass
from specbench.drafters.rotary import TYPES
from specbench.errors import InputError
from specbench.machine.devices import upload


class LayerPass:
    """One pass through a drafter's layers: its store and an explicit mask (None: causal if `first`, else all visible).

    sizes: new entries of each row. mask (B, N, S).
    """

    def __init__(self, store: KVStore, sizes: list[int], mask: Tensor | None, first: bool = False) -> None:
        self.store, self.sizes = store, sizes
        self.first = first
        self._mask = None if mask is None else mask[:, None]
        self._shared: dict[int, Tensor] = {}

    def get_mask(self, layer: int, window: int | None, heads: int = 1) -> Tensor | None:
        """Return the mask as the target's pass does."""
        if self._mask is None:
            return None
        if heads not in self._shared:
            self._shared[heads] = share(self._mask, heads)
        return self._shared[heads]


class DraftKV:
    """Keys and values of a drafter's layers for a batch: committed tokens, then the levels of the trees until `drop`.

    runner: of the layers. Passes have a fixed shape where it asks for that, except over prompts.
    """

    def __init__(self, batch: int, capacity: int, bias: ChainBias, runner: Runner[Tensor] | None = None) -> None:
        self.store, self._bias, self._runner = KVStore(batch, capacity), bias, runner
        self._stacked = 0  # entries of the trees in flight, equal in every row

    @property
    def lengths(self) -> list[int]:
        """Committed tokens of each row."""
        return [length - self._stacked for length in self.store.lengths]

    @property
    def batch(self) -> int:
        return self.store.batch

    @property
    def capacity(self) -> int:
        return self.store.capacity

    @property
    def bytes(self) -> int:
        return self.store.bytes

    def clear(self, rows: int | None = None) -> None:
        """Drop every sequence and keep the memory, for `rows` rows; None: for all."""
        self.store.clear(rows)
        self._stacked = 0

    def retain(self, places: list[int]) -> None:
        """Keep only the rows at these places."""
        self.store.retain(places)

    def number(self, count: int, first: int = 0) -> Tensor:
        """(B, count) int64: positions of entries, the first of them `first` places after the row's committed tokens."""
        if len(self.lengths) == 1:
            return self._bias.number(self.lengths[0] + first, count)
        return self._bias.locate(self.lengths) + self._bias.number(first, count)

    def number_tokens(self, counts: list[int]) -> Tensor:
        """(B, N) int64: positions of `counts` further committed tokens per row; padding is at its row's first position."""
        positions = self.number(max(counts))
        if len(set(counts)) == 1:
            return positions
        self._fed = upload(torch.tensor(counts), positions.device)
        return torch.where(self._bias.number(0, max(counts)) < self._fed[:, None], positions, positions[:, :1])

    def select_last(self, out: Tensor, counts: list[int], last: int = 1) -> Tensor:
        """Return each row's outputs for the last of the tokens that `number_tokens` numbered: (B, N, H) -> (B, last, H)."""
        if len(set(counts)) == 1:
            return out[:, out.shape[1] - last :]
        places = self._fed[:, None] - last + self._bias.number(0, last)
        return out[torch.arange(len(counts), device=out.device)[:, None], places]

    def shift(self, tokens: Tensor, following: Tensor, counts: list[int]) -> Tensor:
        """Return each row's tokens without the first and with one more (B,): tokens (B, N), as many as were numbered."""
        shifted = torch.cat([tokens[:, 1:], following[:, None]], dim=1)
        return shifted if len(set(counts)) == 1 else shifted.scatter(1, (self._fed[:, None] - 1).clamp(min=0), following[:, None])

    def build_token_pass(self, counts: list[int]) -> LayerPass | StaticPass:
        """Return the pass of `counts` further committed tokens per row; call `keep` after it."""
        most, static = max(counts), self._is_static(max(counts))
        if not any(self.lengths) or (counts == [1] and not static):
            return LayerPass(self.store, counts, None, first=not any(self.lengths))
        mask = self._bias.build_chain_masks(self.lengths, most)
        return self._lay_out(mask) if static else self._build_pass(counts, mask)

    def keep(self, counts: list[int]) -> None:
        """Commit the tokens of a token pass."""
        self.store.lengths = [length + count for length, count in zip(self.store.lengths, counts, strict=True)]

    def build_level_pass(self, visible: Tensor) -> LayerPass | StaticPass:
        """Return the pass of the trees' next level. visible (B, N, M) bool: what each node sees of the trees, itself last."""
        nodes = visible.shape[1]
        mask = self._bias.build_visible_masks(self.lengths, visible)
        return self._lay_out(mask) if self._is_static(nodes) else self._build_pass([nodes] * len(self.lengths), mask)

    def _is_static(self, count: int) -> bool:
        runs = self._runner is not None and self._runner.is_static(count)
        return runs and min(self.lengths) > 0 and self.store.has_room(count)

    def _build_pass(self, sizes: list[int], mask: Tensor) -> LayerPass:
        filled = max(length + size for length, size in zip(self.store.lengths, sizes, strict=True))
        return LayerPass(self.store, sizes, mask[:, :, :filled])

    def _lay_out(self, mask: Tensor) -> StaticPass:
        """mask (B, N, S) of the filled entries."""
        count = mask.shape[1]
        self.store.reserve(count)
        slots, mask = self.number(count, self._stacked), widen(mask, self.store.bucket)
        return StaticPass(self.store.layers, slots, {(None, None): mask}, reduces=count == 1)

    def stack(self, count: int) -> None:
        """Keep the entries of a level for the levels below it."""
        self._stacked += count
        self.store.lengths = [length + count for length in self.store.lengths]

    def drop(self) -> None:
        """Remove the trees."""
        self.store.lengths, self._stacked = self.lengths, 0


class Rotary:
    """A table of cos and sin by position. Raises InputError for settings that give no finite angles."""

    def __init__(self, config: LlamaConfig, positions: int, like: Tensor) -> None:
        self._fill(LlamaRotaryEmbedding(config).to(like.device), positions, like)
        if not (self.cos.isfinite().all() and self.sin.isfinite().all()):
            raise InputError(f"rope_parameters={config.rope_parameters}: its angles are not finite")

    @staticmethod
    def of_module(decoder: nn.Module, positions: int, like: Tensor) -> "Rotary":
        """Return the table of a model's own positions. Raises InputError if its layers do not share rotary positions."""
        table = Rotary.__new__(Rotary)
        try:
            rotary: Any = decoder.get_submodule("rotary_emb")
            if getattr(rotary, "rope_type", "default") not in TYPES:
                raise InputError(f"rope_type={rotary.rope_type}: angles that depend on the text's length are not supported here")
            table._fill(rotary, positions, like)
        except (AttributeError, TypeError, KeyError):
            raise InputError("the target's layers do not share rotary positions, which further layers like them need") from None
        return table

    def _fill(self, rotary: nn.Module, positions: int, like: Tensor) -> None:
        self.cos, self.sin = (x[0] for x in rotary(like, torch.arange(positions, device=like.device)[None]))

    def get_cos_sin(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N) -> cos and sin, (B, N, D) each."""
        return self.cos[positions], self.sin[positions]
