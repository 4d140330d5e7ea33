"""P-EAGLE (AWS 2026): EAGLE-3's network drafts several tokens in one forward, from masked rows after the text."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from methods.eagle import EagleDrafter, EagleState
from methods.eagle3 import Eagle3Network
from specbench.bounds import Depth
from specbench.decoding.tree import DraftTree
from specbench.decoding.tree_batch import pad_rows
from specbench.drafters.config_keys import Rule, require_whole
from specbench.drafters.keeping import count_unread
from specbench.drafters.network import Checkpoint, TargetShape

LAYERS = 2  # of a random network


class PEagleNetwork(Eagle3Network):
    """EAGLE-3's network and what its masked rows read: the embedding of a mask token, and learned hidden states."""

    speculators = "peagle"
    trains = False
    writes_hidden: ClassVar[tuple[str, ...]] = (*Eagle3Network.writes_hidden, "mask.weight")

    def __init__(self, config: Mapping[str, Any], shape: TargetShape) -> None:
        super().__init__(config, shape)
        self.mask = nn.Embedding(1, self.fc.in_features)

    @classmethod
    def list_keys(cls, shape: TargetShape) -> Mapping[str, Rule]:
        return {**super().list_keys(shape), "mask_token_id": require_whole(0, shape.vocab_size - 1, required=True)}

    @classmethod
    def create_config(cls, shape: TargetShape) -> dict[str, Any]:
        random = {"num_hidden_layers": LAYERS, "mask_token_id": shape.vocab_size - 1, "own_head": False}
        return {**super().create_config(shape), **random}

    @classmethod
    def normalise_checkpoint(cls, config: dict[str, Any], tensors: dict[str, Tensor], shape: TargetShape) -> Checkpoint:
        """Rename `mask_hidden` (1, 1, taps * H) to its name here."""
        config, named = super().normalise_checkpoint(config, tensors, shape)
        if "mask_hidden" in named:
            named["mask.weight"] = named.pop("mask_hidden").flatten(0, -2)
        return config, named


class PEagle(EagleDrafter):
    """Drafts a chain of `draft_tokens`: the first from the last committed pair, each other one from a masked row after it.

    Masked rows see the text and the ones before them; their keys and values are dropped after each step.
    """

    network_class: ClassVar[type[Any]] = PEagleNetwork

    def __init__(self, checkpoint: str | None, draft_tokens: Depth, dtype: str) -> None:
        super().__init__(checkpoint, dtype)
        self.draft_tokens = draft_tokens

    def propose(self, states: list[EagleState], budgets: list[int]) -> list[DraftTree]:
        roots, lengths = [state.tokens[-1:] for state in states], [min(self.draft_tokens, budget) for budget in budgets]
        if not any(lengths):
            return [DraftTree.chain(root) for root in roots]
        hidden = self._read_masked(states, budgets, max(lengths) - 1)
        drafted = self.network.to_target_tokens(self.network.compute_logits(hidden).argmax(-1))
        rows = zip(roots, drafted, lengths, strict=True)
        return [DraftTree.chain(torch.cat([root, tokens[:length]])) for root, tokens, length in rows]

    def _read_masked(self, states: list[EagleState], budgets: list[int], masked: int) -> Tensor:
        """Run the network over committed pairs and `masked` masked rows; return the outputs that draft, (B, 1 + masked, H)."""
        counts = count_unread([len(state.tokens) for state in states], budgets, self.store.lengths)
        mask, fed = self.network.mask(states[0].tokens.new_zeros(masked)), [count + masked for count in counts]
        taken = [state.take(count) for state, count in zip(states, counts, strict=True)]
        hidden = pad_rows([torch.cat([own.to(mask.dtype), mask]) for own, _ in taken])
        tokens = pad_rows([self._mask_after(own, masked) for _, own in taken])
        out = self._forward(hidden, tokens, self.store.number_tokens(fed), self.store.build_token_pass(fed))
        self.store.keep(counts)
        self._count_forward(states, [budget > 0 for budget in budgets])
        return self.store.select_last(out, fed, 1 + masked)

    def _mask_after(self, tokens: Tensor, masked: int) -> Tensor:
        """(n,) -> (n + masked,)."""
        return torch.cat([tokens, tokens.new_full((masked,), self.network.config["mask_token_id"])])
