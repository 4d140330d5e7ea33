"""A decoder-only transformers model, unmodified, over our own KV store: one forward over a draft tree per sequence."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from specbench.decoding import attention
from specbench.decoding.attention import ChainBias, ForwardPass
from specbench.decoding.kv_store import KVStore
from specbench.decoding.tree import DraftTree
from specbench.errors import InputError


@dataclass(frozen=True)
class TargetOutput:
    """logits (N, V), or (1, V) after a prefill that needs no more; hidden (N, taps * H) or None."""

    logits: Tensor
    hidden: Tensor | None = None


class LanguageModel:
    """Wraps any AutoModelForCausalLM whose attention goes through transformers' AttentionInterface."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval()
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        self.config = model.config.get_text_config()
        self._own_attention = self.config._attn_implementation
        self.config._attn_implementation = attention.NAME
        self.vocabulary: int = self.config.vocab_size
        self.context: int = _read_context(self.config)
        self.eos_ids = _read_eos_ids(model)
        self._bias = ChainBias(self.dtype, self.device)
        self._taps: tuple[int, ...] = ()
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._tapped: dict[int, Tensor] = {}

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def head(self) -> nn.Module:
        """From the final norm's output to logits."""
        return self.model.get_output_embeddings()

    @property
    def embedding(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def create_store(self, capacity: int, batch: int = 1) -> KVStore:
        return KVStore(batch, capacity)

    @torch.inference_mode()
    def check_attention(self) -> None:
        """Raises InputError for a model some of whose layers keep their past elsewhere, or attend outside the interface."""
        store = self.create_store(2)
        self.prefill(store, [torch.zeros(2, dtype=torch.long, device=self.device)])
        if store.layers != self.config.num_hidden_layers:
            kind, layers = self.config.model_type, self.config.num_hidden_layers
            raise InputError(f"{kind}: {store.layers} of {layers} layers attend through transformers' interface; expected all")

    def tap(self, layers: tuple[int, ...]) -> None:
        """`forward` returns these hidden states side by side: k < L is the input of layer k, L the final norm's output."""
        if layers == self._taps:
            return
        for hook in self._hooks:
            hook.remove()
        decoder = self.model.get_decoder()
        self._taps, self._hooks = layers, [self._register_hook(decoder, layer) for layer in layers]

    def _register_hook(self, decoder: nn.Module, layer: int) -> torch.utils.hooks.RemovableHandle:
        if layer == len(decoder.layers):  # type: ignore[arg-type]
            return decoder.register_forward_hook(lambda _, __, out: self._tapped.update({layer: out[0]}))
        before: nn.Module = decoder.layers[layer]  # type: ignore[index, assignment]
        return before.register_forward_pre_hook(lambda _, given: self._tapped.update({layer: given[0]}))

    @contextmanager
    def use_original_attention(self) -> Iterator[PreTrainedModel]:
        """The same weights under transformers' own attention, for its `generate`."""
        self.config._attn_implementation = self._own_attention
        try:
            yield self.model
        finally:
            self.config._attn_implementation = attention.NAME

    def forward(self, store: KVStore, trees: list[DraftTree], last_only: bool = False) -> list[TargetOutput]:
        """One forward over one tree per row of the store, padded to the largest; nothing is committed.

        `last_only` (prefill) asks for the logits of each tree's last node alone.
        """
        sizes = [len(tree) for tree in trees]
        ids, positions = _batch_trees(trees, store.lengths)  # (B, N) each
        out = self.model(
            input_ids=ids,
            position_ids=positions,
            use_cache=False,
            logits_to_keep=1 if last_only and len(trees) == 1 else 0,
            forward_pass=ForwardPass(store, trees, self._bias),
        )
        logits: Tensor = out.logits
        hidden = torch.cat([self._tapped[layer] for layer in self._taps], dim=-1) if self._taps else None
        return [
            self._build_output(logits[row], None if hidden is None else hidden[row], size, last_only)
            for row, size in enumerate(sizes)
        ]

    @staticmethod
    def _build_output(logits: Tensor, hidden: Tensor | None, size: int, last_only: bool) -> TargetOutput:
        kept = logits[:size][-1:] if last_only else logits[:size]
        return TargetOutput(kept, None if hidden is None else hidden[:size])

    @torch.no_grad()
    def read_hidden(self, ids: Tensor) -> Tensor:
        """The tapped hidden states (B, T, taps * H) of whole texts (B, T), padded on the right; transformers' own attention."""
        with self.use_original_attention() as model:
            model.get_decoder()(input_ids=ids, use_cache=False)
        return torch.cat([self._tapped[layer] for layer in self._taps], dim=-1)

    def prefill(self, store: KVStore, prompts: list[Tensor], all_logits: bool = False) -> list[TargetOutput]:
        """Commit whole prompts, (T,) int64 each, to an empty store."""
        outs = self.forward(store, [DraftTree.chain(prompt) for prompt in prompts], last_only=not all_logits)
        for row, prompt in enumerate(prompts):
            store.keep(row, range(len(prompt)))
        return outs


def _read_context(config: PretrainedConfig) -> int:
    """Longest sequence. Raises InputError for a model that names none: it has no rotary or learned positions."""
    found = getattr(config, "max_position_embeddings", None)
    if found is None:
        raise InputError(f"{config.model_type}: its config has no max_position_embeddings, so this model cannot be run")
    return found


def _read_eos_ids(model: PreTrainedModel) -> tuple[int, ...]:
    """Every token that ends a sequence, by the model's own generation config (else its config)."""
    generation = model.generation_config.eos_token_id if model.generation_config else None
    found = generation if generation is not None else model.config.get_text_config().eos_token_id
    return () if found is None else tuple(found) if isinstance(found, list) else (found,)


def _batch_trees(trees: list[DraftTree], lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Token ids and positions, (B, N) each; padding repeats token 0 at position 0."""
    if len(trees) == 1:
        return trees[0].tokens[None], (trees[0].depths + lengths[0])[None]
    pad = nn.utils.rnn.pad_sequence
    ids = pad([tree.tokens for tree in trees], batch_first=True)
    return ids, pad([tree.depths + length for tree, length in zip(trees, lengths, strict=True)], batch_first=True)
