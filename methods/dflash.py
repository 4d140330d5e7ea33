"""DFlash (Chen et al. 2026): one forward drafts a block, from the target's hidden states of the text and masked tokens after it.

The layers' keys and values of the text come from the target's hidden states alone, and are kept. The block's rows (root, then
mask tokens) see all of them and each other. It reads the checkpoints of z-lab, DeepSpec, SpecForge and speculators.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from specbench.bounds import Length
from specbench.decoding.drafter import SequenceContext
from specbench.decoding.language_model import LanguageModel, TargetOutput
from specbench.decoding.tree import DraftTree
from specbench.decoding.tree_batch import pad_rows
from specbench.decoding.verify import Verification
from specbench.drafters.blocks import BlockPass, Blocks, draw_anchors
from specbench.drafters.config_keys import ANY, FLAG, MOST, Rule, is_whole, require_equal, require_name, require_whole
from specbench.drafters.draft_vocabulary import MappedNetwork, check_maps
from specbench.drafters.keeping import UnreadState, count_unread
from specbench.drafters.layers import LayerPass, Rotary
from specbench.drafters.lesson import Lesson, LessonLoss
from specbench.drafters.network import (
    DEFAULT_EPS,
    Checkpoint,
    TargetShape,
    build_layer_config,
    build_qwen3_layer,
    count_layers,
    draw_layer_inputs,
    list_layer_keys,
)
from specbench.drafters.network_drafter import LayerDrafter
from specbench.drafters.speculators import lift_nested
from specbench.drafters.taps import choose_spread_layers, require_taps
from specbench.errors import InputError

LARGEST_BLOCK = 64
NESTED, SPECULATORS_TAPS = "dflash_config", "aux_hidden_state_layer_ids"  # the latter count as our taps do
FROM_ANCHOR = ("Qwen3DSparkModel", "DSparkDraftModel")  # architectures whose blocks draft from the root's row on
BLOCK, LAYERS = 8, 1  # of a new network
DECAY = 4.0  # rows after which a row's weight in the loss has fallen by e


class DFlashNetwork(MappedNetwork):
    """fc and a norm over hidden states of the text, Qwen3 layers over a block, a norm, and the target's head or a copy of it."""

    files = ("pytorch_model.bin",)
    speculators = "dflash"
    unused = ("verifier_norm", "verifier_lm_head")
    writes_hidden = ("embed_tokens.weight", "fc.weight", "o_proj.weight", "down_proj.weight")

    def __init__(self, config: Mapping[str, Any], shape: TargetShape) -> None:
        super().__init__(config, shape)
        self.layer_config = build_layer_config(self.config, shape, qk_norms=True)
        hidden, eps = self.layer_config.hidden_size, self.layer_config.rms_norm_eps
        self.block, self.mask = self.config["block_size"], self.config["mask_token_id"]
        self.first: int = 0 if self.config.get("sample_from_anchor") else 1  # row of a block that drafts
        self.hidden_vectors = {"fc.weight": len(self.taps)}
        self.fc = nn.Linear(len(self.taps) * shape.hidden_size, hidden, bias=False)
        self.hidden_norm = LlamaRMSNorm(hidden, eps=eps)
        count = self.config.get("num_hidden_layers", 1)
        self.layers = nn.ModuleList(build_qwen3_layer(self.config, self.layer_config, index) for index in range(count))
        self.norm = LlamaRMSNorm(hidden, eps=eps)
        self.own_head = self.config.get("own_head", self.maps)
        if self.own_head:
            self.lm_head = nn.Linear(hidden, self.draft_vocabulary, bias=False)
        if self.config.get("own_embeddings"):
            self.embed_tokens = nn.Embedding(shape.vocab_size, hidden)

    @property
    def taps(self) -> tuple[int, ...]:
        return tuple(layer + 1 for layer in self.config["target_layer_ids"])

    @classmethod
    def list_keys(cls, shape: TargetShape) -> Mapping[str, Rule]:
        layers = shape.num_hidden_layers
        return {
            **list_layer_keys(shape),
            "num_hidden_layers": require_whole(most=MOST),
            "block_size": require_whole(2, LARGEST_BLOCK, required=True),
            "mask_token_id": require_whole(0, shape.vocab_size - 1, required=True),
            "target_layer_ids": require_taps(-1, layers - 1, range(1, MOST), "layers"),
            SPECULATORS_TAPS: require_taps(0, layers, range(1, MOST)),
            "num_target_layers": require_equal(layers, "the target's"),
            "target_hidden_size": require_equal(shape.hidden_size, "the target's"),
            "draft_vocab_size": require_whole(most=shape.vocab_size),
            "attention_mode": require_name(("gqa",)),
            **dict.fromkeys(("sample_from_anchor", "own_head", "own_embeddings", "tie_word_embeddings"), FLAG),
            **dict.fromkeys(("num_anchors", "confidence_head_alpha", "sliding_window_non_causal"), ANY),  # only for training
            **cls.list_head_keys(),
        }

    @classmethod
    def list_head_keys(cls) -> Mapping[str, Rule]:
        """Return the keys of what comes after the layers: DeepSpec writes DFlash as DSpark without its heads."""
        return {
            "projector_type": require_name(("dflash",)),
            "markov_rank": Rule("0: heads over the block are DSpark's", lambda value: is_whole(value) and value == 0),
            "enable_confidence_head": Rule("false: this head is DSpark's", lambda value: value is False),
        }

    @classmethod
    def flatten_config(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Move the keys of `dflash_config`, and those of speculators, to the top level."""
        return lift_nested(super().flatten_config(config), NESTED)

    @classmethod
    def create_config(cls, shape: TargetShape) -> dict[str, Any]:
        block = {"block_size": BLOCK, "mask_token_id": shape.vocab_size - 1, "sample_from_anchor": False}
        taps = {"target_layer_ids": choose_spread_layers(shape.num_hidden_layers, min(3, shape.num_hidden_layers))}
        llama = {"num_hidden_layers": LAYERS, "hidden_act": "silu", "rope_theta": 10000.0}
        return {**shape.get_layer_sizes(), **llama, **block, **taps}

    @classmethod
    def normalise_checkpoint(cls, config: dict[str, Any], tensors: dict[str, Tensor], shape: TargetShape) -> Checkpoint:
        """Note what the checkpoint has of its own and from which row of a block it drafts; unify the spelling of taps."""
        named = check_maps(config, tensors)
        found, said = count_layers(named), config.get("num_hidden_layers", 1)
        if said != found:
            raise InputError(f"num_hidden_layers={said}: expected {found}, as in the weights")
        given = [tap - 1 for tap in config.pop(SPECULATORS_TAPS, [])] or config.get("target_layer_ids")
        defaults = {
            "rms_norm_eps": DEFAULT_EPS,
            "target_layer_ids": given or choose_spread_layers(shape.num_hidden_layers, found),
            "sample_from_anchor": any(name in FROM_ANCHOR for name in config.get("architectures", [])),
            "own_embeddings": "embed_tokens.weight" in named,
            "own_head": "lm_head.weight" in named,
        }
        return {**defaults, **config, "target_layer_ids": defaults["target_layer_ids"]}, named

    def attach_target(self, target: LanguageModel) -> None:
        whole = self.own_head and self.config.get("own_embeddings")
        if self.layer_config.hidden_size != target.config.hidden_size and not whole:
            needed = "embed_tokens.weight and lm_head.weight in the checkpoint"
            raise InputError(
                f"a hidden size of {self.layer_config.hidden_size} needs {needed}: the target's have a different one"
            )
        if self.maps and not self.own_head:
            raise InputError(
                "lm_head.weight is missing in the checkpoint; the target's is no substitute, since it has all tokens"
            )
        self._embed = self.embed_tokens.forward if self.config.get("own_embeddings") else target.embedding.forward
        self._head = self.lm_head.forward if self.own_head else target.head.forward
        self._read_head = target.head.get_parameter
        self._head_dtype = self.fc.weight.dtype if self.own_head else target.dtype
        self.rotary = Rotary(self.layer_config, target.context + self.block, self.fc.weight)

    def choose_vocabulary(self, tokens: Tensor) -> None:
        """Draft only these tokens, from their rows of the target's head."""
        super().choose_vocabulary(tokens)
        self.lm_head.weight.data.copy_(self._read_head("weight")[tokens])

    def embed(self, tokens: Tensor) -> Tensor:
        """(...) -> (..., H)."""
        return cast(Tensor, self._embed(tokens).to(self.dtype))

    def write_text(self, features: Tensor, positions: Tensor, forward_pass: Any) -> None:
        """Write the text's keys and values for all layers. features (B, N, taps * H) of the target, positions (B, N)."""
        text, rotary = self.hidden_norm(self.fc(features)), self.rotary.get_cos_sin(positions)
        for index, layer in enumerate(self.layers):
            attention: Any = layer.self_attn
            key, value = (part(text).unflatten(-1, (-1, attention.head_dim)) for part in (attention.k_proj, attention.v_proj))
            key = attention.k_norm(key).transpose(1, 2)
            _, key = apply_rotary_pos_emb(key, key, *rotary)
            forward_pass.store.write(index, key, value.transpose(1, 2), forward_pass.sizes)

    def forward(self, hidden: Tensor, positions: Tensor, forward_pass: Any) -> Tensor:
        """Embedded rows of blocks (B, N, H), positions (B, N) -> (B, N, H), what the head reads."""
        rotary = self.rotary.get_cos_sin(positions)
        for layer in self.layers:
            hidden = layer(hidden, position_embeddings=rotary, forward_pass=forward_pass)
        return cast(Tensor, self.norm(hidden))

    def list_layer_inputs(self, nodes: int) -> list[tuple[Tensor, ...]]:
        hidden, _, positions = draw_layer_inputs(self, self.layer_config.hidden_size, nodes)
        return [(hidden, positions)]

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """(..., H) -> (..., draft vocabulary)."""
        return cast(Tensor, self._head(hidden.to(self._head_dtype)))

    def read_blocks(self, lesson: Lesson) -> tuple[Blocks, Tensor]:
        """Return blocks at random places of the answers, and what the head reads in their drafting rows, (B, A, rows, H)."""
        blocks = draw_anchors(lesson, self.block, self.first)
        tokens = torch.full_like(blocks.positions, self.mask)
        tokens[:, :, 0] = blocks.anchors
        text_pass = BlockPass(blocks.build_mask(self.dtype))
        self.write_text(lesson.hidden, torch.arange(lesson.ids.shape[1], device=lesson.ids.device)[None], text_pass)
        hidden = self(self.embed(tokens.flatten(1)), blocks.positions.flatten(1), text_pass)
        return blocks, hidden.unflatten(1, tokens.shape[1:])[:, :, self.first :]

    def compute_loss(self, lesson: Lesson) -> LessonLoss:
        """Cross-entropy with the target's distribution, weighted less from row to row of a block."""
        blocks, hidden = self.read_blocks(lesson)
        logits = self.compute_logits(hidden).float()
        teacher, known = self.select_teacher(blocks.compute_teacher(lesson).flatten(0, 2))
        weights = blocks.weigh(DECAY) * known.view(blocks.labels.shape)
        entropy = -(teacher.float().softmax(-1) * logits.flatten(0, 2).log_softmax(-1)).sum(-1).view(weights.shape)
        hits = self.to_target_tokens(logits.argmax(-1)) == blocks.labels
        return LessonLoss((entropy * weights).sum() / weights.sum().clamp(min=1), blocks.average(hits))


class DFlash(LayerDrafter):
    """Drafts the most probable token of each row of a block, or the first `draft_tokens` of them; null: all."""

    network_class: ClassVar[type[Any]] = DFlashNetwork
    room = LARGEST_BLOCK

    def __init__(self, checkpoint: str | None, draft_tokens: Length | None, dtype: str) -> None:
        super().__init__(checkpoint, dtype)
        self.draft_tokens = draft_tokens

    def bind(self, target: LanguageModel) -> None:
        super().bind(target)
        rows = self.network.block - self.network.first
        if self.draft_tokens is not None and self.draft_tokens > rows:
            raise InputError(f"draft_tokens={self.draft_tokens}: the checkpoint's blocks draft at most {rows} tokens")
        self.most = self.draft_tokens or rows

    def start(self, prompt: list[int], out: TargetOutput, context: SequenceContext) -> UnreadState:
        return UnreadState(context, out.hidden, self.to_tensor(prompt[-1:]))

    def propose(self, states: list[UnreadState], budgets: list[int]) -> list[DraftTree]:
        lengths = [min(self.most, budget) for budget in budgets]
        if not any(lengths):
            return [DraftTree.chain(state.root) for state in states]
        self._read_text(states, budgets)
        block, roots = self.network.block, pad_rows([state.root for state in states])
        tokens = torch.cat([roots, roots.new_full((1, block - 1), self.network.mask).expand(len(states), -1)], dim=1)
        visible = torch.ones(1, block, block, dtype=torch.bool, device=roots.device).expand(len(states), -1, -1)
        inputs = self.network.embed(tokens), self.store.number(block)
        hidden = self.run_layers(inputs, self.store.build_level_pass(visible))
        for state, length in zip(states, lengths, strict=True):
            state.work.forwards += length > 0
        return self.pick_drafts(states, hidden[:, self.network.first : self.network.first + max(lengths)], lengths)

    def pick_drafts(self, states: list[UnreadState], hidden: Tensor, lengths: list[int]) -> list[DraftTree]:
        """hidden (B, rows, H): of the rows that draft."""
        drafted = self.network.to_target_tokens(self.network.compute_logits(hidden).argmax(-1))
        return [DraftTree.chain(torch.cat([one.root, own[:n]])) for one, own, n in zip(states, drafted, lengths, strict=True)]

    def _read_text(self, states: list[UnreadState], budgets: list[int]) -> None:
        """Write keys and values of the committed tokens that the store lacks."""
        counts = count_unread([len(state.hidden) for state in states], budgets, self.store.lengths)
        features = pad_rows([state.take(count) for state, count in zip(states, counts, strict=True)]).to(self.network.dtype)
        self.network.write_text(features, self.store.number_tokens(counts), LayerPass(self.store.store, counts, None))
        self.store.keep(counts)

    def observe(self, state: UnreadState, tree: DraftTree, out: TargetOutput, verified: Verification) -> None:
        state.observe(out, verified)
