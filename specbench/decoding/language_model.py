"""An unmodified decoder-only transformers model over our own KV store: one forward over one draft tree per sequence."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PretrainedConfig, PreTrainedModel

from specbench.decoding import attention
from specbench.decoding.attention import ForwardPass
from specbench.decoding.kv_store import KVStore
from specbench.decoding.masks import ChainBias, Reach
from specbench.decoding.runner import Runner
from specbench.decoding.static import StaticPass, lay_out
from specbench.decoding.tree import DraftTree
from specbench.decoding.tree_batch import pad_rows
from specbench.errors import InputError
from specbench.machine.devices import upload

LAST = slice(-1, None)  # of the logits; asked for one by its number, Gemma 4 leaves the other tokens out of layers that share KV


@dataclass(frozen=True)
class TargetOutput:
    """The target's output for the N nodes of one draft tree.

    logits (N, V): row i scores the token after node i; (1, V), the last row, after a prefill without `prompt_logits`.
    hidden (N, taps * H): the tapped hidden states side by side; empty without taps.
    """

    logits: Tensor
    hidden: Tensor = field(default_factory=lambda: torch.empty(0))


class LanguageModel:
    """Wraps any AutoModelForCausalLM whose attention goes through transformers' AttentionInterface."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model: PreTrainedModel = model.eval()  # type: ignore[no-untyped-call]
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        self.config = model.config.get_text_config()
        self._original_attention = self.config._attn_implementation
        self.config._attn_implementation = attention.NAME
        self.vocabulary: int = self.config.vocab_size
        self.context: int = _read_context(self.config)
        self.eos_ids = _read_eos_ids(model)
        self.self_test: dict[str, Any] = {}  # of a loaded model: what run.json says about it
        self.quantised: str | None = None  # by which method layers are kept quantised,
        self.dequantised: str | None = None  # or were, before transformers made plain ones of them
        self.products: dict[str, int | None] = {}  # by shape of linear layer, the rows from which its packed product is taken
        self._chunks = _read_chunks(self.config)
        self._bias = ChainBias(self.dtype, self.device)
        self._taps: tuple[int, ...] = ()
        self._hooks: list[RemovableHandle] = []
        self._tapped: dict[int, Tensor] = {}
        self._reaches: set[Reach] = set()  # of the layers, known once each has attended
        self.runner = Runner(self._compute)

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def decoder(self) -> nn.Module:
        """The model without its output head."""
        decoder: nn.Module = self.model.get_decoder()  # type: ignore[no-untyped-call]
        return next(self.model.children()) if decoder is self.model else decoder  # Llama 4 names the whole

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder's layers, whatever their name. Raises InputError if there are none."""
        lists = (module for module in self.decoder.modules() if isinstance(module, nn.ModuleList))
        found = next((layers for layers in lists if len(layers) == self.config.num_hidden_layers), None)
        if found is None:
            raise InputError(f"{self.config.model_type}: its {self.config.num_hidden_layers} layers are not in a list")
        return found

    @property
    def head(self) -> nn.Module:
        """Maps the final norm's output to logits."""
        return cast(nn.Module, self.model.get_output_embeddings())  # type: ignore[no-untyped-call]

    @property
    def embedding(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def create_store(self, capacity: int, batch: int = 1) -> KVStore:
        return KVStore(batch, capacity)

    @torch.inference_mode()
    def check_attention(self) -> None:
        """Raise InputError if a layer keeps its past elsewhere or does not attend through the interface."""
        store = self.create_store(2)
        self.prefill(store, [torch.zeros(2, dtype=torch.long, device=self.device)])
        if len(store.layers) != self.config.num_hidden_layers:
            layers = self.config.num_hidden_layers
            raise InputError(f"{len(store.layers)} of {layers} layers attend through transformers' interface; expected all")

    def tap(self, layers: tuple[int, ...]) -> None:
        """Make `forward` return these hidden states: k < L is the input of layer k, L the final norm's output."""
        if layers == self._taps:
            return
        for hook in self._hooks:
            hook.remove()
        self._taps = layers
        self._hooks = [self._register_hook(layer) for layer in layers]

    def _register_hook(self, layer: int) -> RemovableHandle:
        if layer == len(self.layers):
            return self.decoder.register_forward_hook(lambda _, __, out: self._tapped.update({layer: out[0]}))

        def record(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            self._tapped[layer] = inputs[0] if inputs else named["hidden_states"]

        return self.layers[layer].register_forward_pre_hook(record, with_kwargs=True)

    @contextmanager
    def use_original_attention(self) -> Iterator[PreTrainedModel]:
        """Yield the same weights under transformers' own attention, for its `generate`."""
        self.config._attn_implementation = self._original_attention
        try:
            yield self.model
        finally:
            self.config._attn_implementation = attention.NAME

    def forward(self, store: KVStore, trees: list[DraftTree], last_only: bool = False) -> list[TargetOutput]:
        """Run one forward over one tree per row of the store, padded to the largest; commit nothing.

        last_only (prefill): return the logits of each tree's last node alone.
        """
        ids, positions = _batch_trees(trees, store.lengths, self._bias)  # (B, N) each
        sizes = [len(tree) for tree in trees]
        if self._is_static(store, ids.shape[1]):
            rows = [slice(size - 1 if last_only else 0, size) for size in sizes]
            logits, hidden = self.runner.run((ids, positions), self.lay_out(store, trees), self._taps)
        else:
            rows = [slice(size) for size in sizes]
            eager = ForwardPass(store, trees, self._bias, self._chunks, self._reaches)
            with self._read_ends(sizes) if last_only else nullcontext():
                logits, hidden = self._compute(ids, positions, eager, LAST if last_only and len(set(sizes)) == 1 else 0)
            if last_only:
                ends = [0 if logits.shape[1] == 1 else size - 1 for size in sizes]
                rows = [slice(end, end + 1) for end in ends]
        return [TargetOutput(logits[row, rows[row]], hidden[row, :size]) for row, size in enumerate(sizes)]

    @contextmanager
    def _read_ends(self, sizes: list[int]) -> Iterator[None]:
        """Let the output head read only the last token of each sequence, if these are not in one column."""
        if len(set(sizes)) == 1:
            yield
            return

        def select(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            hidden, *others = inputs
            ends = upload(torch.tensor(sizes), hidden.device) - 1
            return (hidden[torch.arange(len(sizes), device=hidden.device), ends][:, None], *others)

        hook = self.head.register_forward_pre_hook(select)
        try:
            yield
        finally:
            hook.remove()

    def _is_static(self, store: KVStore, nodes: int) -> bool:
        """Return whether a forward has a fixed shape: not over a prompt, nor where a row would replace a batch's graph."""
        recorded_elsewhere = self.runner.kind == "graph" and store.is_part
        return min(store.lengths) > 0 and self.runner.is_static(nodes) and store.has_room(nodes) and not recorded_elsewhere

    def _compute(
        self, ids: Tensor, positions: Tensor, forward_pass: ForwardPass | StaticPass, kept: slice | int = 0
    ) -> tuple[Tensor, Tensor]:
        """ids, positions (B, N) -> logits (B, N, V), or of the kept tokens, and hidden states (B, N, taps * H)."""
        logits: Tensor = self.model(
            input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=kept, forward_pass=forward_pass
        ).logits
        return logits, self._take_tapped() if self._taps else logits.new_empty(*ids.shape, 0)

    def _take_tapped(self) -> Tensor:
        """Return the tapped hidden states of the last forward, (B, N, taps * H), and forget them."""
        hidden = torch.cat([self._tapped[layer] for layer in self._taps], dim=-1)
        self._tapped.clear()
        return hidden

    def lay_out(self, store: KVStore, trees: list[DraftTree]) -> StaticPass:
        """Return the inputs of a forward of fixed shape over the trees. Every layer of the store must have written."""
        return lay_out(store, trees, self._bias, sorted(self._reaches, key=str), self._chunks)

    def compile(self, store: KVStore, trees: list[DraftTree]) -> None:
        """Compile the forward for trees like these and the present taps. Raises whatever torch.compile does."""
        ids, positions = _batch_trees(trees, store.lengths, self._bias)
        self.runner.compile((ids, positions), self.lay_out(store, trees), self._taps)

    @torch.no_grad()
    def read_hidden(self, ids: Tensor) -> Tensor:
        """(B, T) whole texts, padded on the right -> tapped hidden states (B, T, taps * H), by transformers' own attention."""
        with self.use_original_attention():
            self.decoder(input_ids=ids, use_cache=False)
        return self._take_tapped()

    def prefill(self, store: KVStore, prompts: list[Tensor], all_logits: bool = False) -> list[TargetOutput]:
        """Commit whole prompts, (T,) int64 each, to an empty store."""
        outs = self.forward(store, [DraftTree.chain(prompt) for prompt in prompts], last_only=not all_logits)
        for row, prompt in enumerate(prompts):
            store.keep(row, range(len(prompt)))
        return outs


def check_taps(taps: tuple[int, ...], layers: int) -> None:
    """Raise InputError for a hidden state that a target with this many layers does not have."""
    for tap in taps:
        if not 0 <= tap <= layers:
            raise InputError(f"the drafter reads the hidden state before layer {tap}; the target has 0 to {layers} (after all)")


def check_token(token: int | None, name: str, vocabulary: int) -> None:
    """Raise InputError if a setting names a token that the target does not have."""
    if token is not None and token >= vocabulary:
        raise InputError(f"{name}={token}: the target has tokens 0 to {vocabulary - 1}")


def _read_context(config: PretrainedConfig) -> int:
    """Return the longest sequence. Raises InputError for a model without rotary or learned positions."""
    context: int | None = getattr(config, "max_position_embeddings", None)
    if context is None:
        raise InputError(f"{config.model_type}: its config has no max_position_embeddings, so this model cannot be run")
    return min([context, *_list_position_limits(config)])


def _list_position_limits(config: PretrainedConfig) -> Iterator[int]:
    """Yield the lengths beyond which an entry of the KV store depends on more than its own position.

    longrope rotates all tokens of a forward differently once one of them is beyond the original context; Llama 4's
    temperature tuning counts a forward's tokens from the model's own cache, but the past is in our store.
    """
    rotary = getattr(config, "rope_parameters", None) or {}
    for settings in (rotary, *(value for value in rotary.values() if isinstance(value, dict))):
        if settings.get("rope_type") == "longrope":
            yield settings.get("original_max_position_embeddings") or config.max_position_embeddings
    if getattr(config, "attn_temperature_tuning", None):
        yield int(config.floor_scale) - 1


def _read_chunks(config: PretrainedConfig) -> list[int | None]:
    """Return each layer's chunk: a token sees only those of its own chunk (Llama 4). Empty for a model without chunks."""
    chunk: int | None = getattr(config, "attention_chunk_size", None)
    if chunk is None:
        return []
    kinds = getattr(config, "layer_types", None) or ["chunked_attention"] * config.num_hidden_layers
    return [chunk if kind == "chunked_attention" else None for kind in kinds]


def _read_eos_ids(model: PreTrainedModel) -> tuple[int, ...]:
    """Return every end-of-sequence token of the model's generation config, else of its config."""
    generation = model.generation_config.eos_token_id if model.generation_config else None
    ids = generation if generation is not None else model.config.get_text_config().eos_token_id
    return () if ids is None else tuple(ids) if isinstance(ids, list) else (ids,)


def _batch_trees(trees: list[DraftTree], lengths: list[int], bias: ChainBias) -> tuple[Tensor, Tensor]:
    """Token ids and positions, (B, N) each; padding repeats token 0 at the root's position."""
    if len(trees) == 1:
        tree, length = trees[0], lengths[0]
        return tree.tokens[None], bias.number(length, len(tree)) if tree.linear else (tree.depths + length)[None]
    return pad_rows([tree.tokens for tree in trees]), bias.locate(lengths) + pad_rows([tree.depths for tree in trees])
