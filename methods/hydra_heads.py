"""Hydra (Ankner et al. 2024): heads that also read the tokens drafted before theirs, so each node has its own children.

The published recipe (prefix-mlp) puts one decoder layer between the target's hidden states and the heads.
"""

from collections.abc import Mapping
from itertools import chain
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm

from specbench.decoding.drafter import SequenceContext
from specbench.decoding.language_model import LanguageModel, TargetOutput
from specbench.decoding.tree import DraftTree
from specbench.decoding.tree_batch import pad_rows
from specbench.decoding.verify import Verification
from specbench.drafters.config_keys import MOST, Rule, require_equal, require_name, require_whole
from specbench.drafters.keeping import UnreadState, count_unread
from specbench.drafters.layers import Rotary
from specbench.drafters.lesson import Lesson, LessonLoss, TrainingPass, divergence, mean
from specbench.drafters.network import DraftNetwork, TargetShape, build_layer_config, draw_layer_inputs, embedding_scale
from specbench.drafters.network_drafter import LayerDrafter
from specbench.drafters.tree_heads import TreeHeads

ARCHITECTURES = ("mlp", "prefix-mlp")  # not the published ablations cross-attn and eagle-attn
GROUNDED = Rule("true: heads that are not grounded read no drafted tokens, as in Medusa", lambda value: value is True)
DECAY = 0.8  # a head's weight in the loss, relative to the head before, as in Medusa


class HydraBlock(nn.Module):
    """Maps several vectors of H dimensions to one: W_r z + b_r + SiLU(W z + b); a single one to z + SiLU(W z + b)."""

    def __init__(self, vectors: int, hidden: int) -> None:
        super().__init__()
        self.linear = nn.Linear(vectors * hidden, hidden)
        self.res_connection = nn.Linear(vectors * hidden, hidden) if vectors > 1 else nn.Identity()

    def forward(self, read: Tensor) -> Tensor:
        """(..., vectors * H) -> (..., H)."""
        return cast(Tensor, self.res_connection(read) + nn.functional.silu(self.linear(read)))

    def scale_tokens(self, scale: float) -> None:
        """Scale the weights of all inputs except the first vector."""
        for layer in (self.linear, self.res_connection):
            if isinstance(layer, nn.Linear):
                layer.weight.data[:, layer.out_features :] *= scale


class Prefix(nn.Module):
    """One Llama layer and the final norm."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList([LlamaDecoderLayer(config, 0)])
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, hidden: Tensor, position_embeddings: tuple[Tensor, Tensor], forward_pass: Any) -> Tensor:
        """(B, N, H) -> (B, N, H)."""
        return cast(Tensor, self.norm(self.layers[0](hidden, position_embeddings=position_embeddings, forward_pass=forward_pass)))


class HydraNetwork(DraftNetwork):
    """Head i reads a hidden state, the root and i drafted tokens, and predicts the token i + 1 places after the root."""

    files = ("hydra_lm_head.pt",)
    unused = (
        *("prefix_embeding_layer.embed_tokens", "prefix_embeding_layer.layers.0.self_attn.rotary_emb"),
        *("input_embed_fn", "lm_head"),
    )
    writes_hidden = (
        *("linear.weight", "linear.bias", "res_connection.weight", "res_connection.bias"),
        *("o_proj.weight", "down_proj.weight"),
    )

    def __init__(self, config: Mapping[str, Any], shape: TargetShape) -> None:
        super().__init__(config, shape)
        self.prefixed = config["hydra_head_arch"] == "prefix-mlp"
        heads, hidden = range(config["hydra_num_heads"]), shape.hidden_size
        if self.prefixed:
            self.layer_config = build_layer_config({}, shape)
            self.prefix_embeding_layer = Prefix(self.layer_config)  # the authors' spelling
        dropout = [nn.Identity()] if self.prefixed else []  # the authors' dropout, before every block and head of prefix-mlp
        chains = [[(*dropout, block) for block in _build_blocks(head + 2, hidden, config)] for head in heads]
        self.hydra_mlp = nn.ModuleList([nn.Sequential(*chain.from_iterable(blocks)) for blocks in chains])
        logits = [nn.Linear(hidden, shape.vocab_size) for _ in heads]
        self.hydra_lm_head = nn.ModuleList([nn.Sequential(*dropout, head) if dropout else head for head in logits])
        both = ("linear", "res_connection")
        self.hidden_vectors = {f"hydra_mlp.{head}.{len(dropout)}.{name}.weight": head + 2 for head in heads for name in both}

    @classmethod
    def list_keys(cls, shape: TargetShape) -> Mapping[str, Rule]:
        return {
            "hydra_head_arch": require_name(ARCHITECTURES, required=True),
            "hydra_num_heads": require_whole(most=MOST, required=True),
            "hydra_num_layers": require_whole(most=MOST),
            "grounded_heads": GROUNDED,
            "hidden_state_offset": require_whole(least=0, most=shape.num_hidden_layers),
            **{name: require_equal(getattr(shape, name), "the target's") for name in ("hidden_size", "vocab_size")},
        }

    @classmethod
    def create_config(cls, shape: TargetShape) -> dict[str, Any]:
        """The published recipe, Hydra++."""
        counts = {"hydra_num_heads": 4, "hydra_num_layers": 4}
        return {**counts, "hydra_head_arch": "prefix-mlp", "grounded_heads": True, "hidden_state_offset": 0}

    def __len__(self) -> int:
        return len(self.hydra_mlp)

    @property
    def taps(self) -> tuple[int, ...]:
        return (self.shape.num_hidden_layers - self.config.get("hidden_state_offset", 0),)

    def init_weights(self, target: LanguageModel) -> None:
        """Start every head from the target's output head, and scale embeddings to the size of hidden states."""
        scale = embedding_scale(target)
        for block in self.modules():
            if isinstance(block, HydraBlock):
                block.scale_tokens(scale)
        for logits in self.hydra_lm_head.modules():
            if isinstance(logits, nn.Linear):
                nn.init.zeros_(logits.bias)
                logits.weight.data.copy_(target.head.get_parameter("weight"))

    def attach_target(self, target: LanguageModel) -> None:
        self._embed = target.embedding.forward
        if self.prefixed:
            self.rotary = Rotary(self.layer_config, target.context, self.prefix_embeding_layer.norm.weight)

    def apply_prefix(self, hidden: Tensor, positions: Tensor, forward_pass: Any) -> Tensor:
        """Map the target's hidden states to those that the heads read, (B, N, H) each. positions (B, N)."""
        if not self.prefixed:
            return hidden
        return cast(Tensor, self.prefix_embeding_layer(hidden, self.rotary.get_cos_sin(positions), forward_pass))

    def run_layers(self, *inputs: Any) -> Tensor:
        """Run the prefix layer. inputs: the arguments of `apply_prefix`; returns (B, N, H)."""
        return self.apply_prefix(*inputs)

    def list_layer_inputs(self, nodes: int) -> list[tuple[Tensor, ...]]:
        hidden, _, positions = draw_layer_inputs(self, self.shape.hidden_size, nodes)
        return [(hidden, positions)] if self.prefixed else []

    def embed(self, tokens: Tensor) -> Tensor:
        """(...) -> (..., H)."""
        return cast(Tensor, self._embed(tokens).to(self.dtype))

    def compute_logits(self, head: int, read: Tensor) -> Tensor:
        """read (..., (head + 2) H): a hidden state, then the embeddings of the root and the drafted tokens -> (..., V)."""
        return cast(Tensor, self.hydra_lm_head[head](self.hydra_mlp[head](read)))

    def compute_loss(self, lesson: Lesson) -> LessonLoss:
        """Sum over heads k of 0.8^k times the cross-entropy with the target's distribution (Hydra++, section 4)."""
        positions = torch.arange(lesson.ids.shape[1], device=lesson.ids.device)[None]
        read, losses, right = self.apply_prefix(lesson.hidden, positions, TrainingPass()), [], []
        for head in range(len(self)):
            read = torch.cat([read, self.embed(lesson.ids.roll(-1 - head, dims=1))], dim=-1)
            mask, tokens = lesson.select_ahead(head + 2)
            logits = self.compute_logits(head, read[mask])
            losses.append(DECAY ** (head + 1) * divergence(logits, lesson.compute_teacher(mask, head + 2)))
            right.append(mean(logits.argmax(-1) == tokens))
        return LessonLoss(torch.stack(losses).sum(), right)


def _build_blocks(vectors: int, hidden: int, config: Mapping[str, Any]) -> list[nn.Module]:
    """Build a block over all vectors, followed by one further block, applied once per remaining layer."""
    further = HydraBlock(1, hidden)
    return [HydraBlock(vectors, hidden), *[further] * (config.get("hydra_num_layers", 1) - 1)]


class HydraHeads(TreeHeads, LayerDrafter):
    """Drafts each expanded node's children from the path that leads to it."""

    network_class: ClassVar = HydraNetwork

    def start(self, prompt: list[int], out: TargetOutput, context: SequenceContext) -> UnreadState:
        return UnreadState(context, out.hidden, self.to_tensor(prompt[-1:]))

    def draft_tokens(self, states: list[UnreadState], budgets: list[int]) -> Tensor:
        shape, roots = self.tree.cut(max(budgets)), pad_rows([state.root for state in states])
        drafted = []
        read = torch.cat([self._catch_up(states, budgets), self.network.embed(roots)], dim=-1)  # (B, 1, 2 H)
        for head, level in enumerate(shape.levels):
            best = self.network.compute_logits(head, read).topk(self.tree.width).indices  # (B, m, width)
            tokens = best[:, level.rows, level.ranks]
            drafted.append(tokens)
            above = read[:, level.rows[level.expanded]]
            read = torch.cat([above, self.network.embed(tokens[:, level.expanded])], dim=-1)
        return torch.cat(drafted, dim=1)

    def _catch_up(self, states: list[UnreadState], budgets: list[int]) -> Tensor:
        """Run the prefix layer over new hidden states; return its output for the last of each row, (B, 1, H)."""
        counts = count_unread([len(state.hidden) for state in states], budgets, self.store.lengths)
        taken = [state.take(count) for state, count in zip(states, counts, strict=True)]
        hidden = pad_rows(taken).to(self.network.dtype)
        inputs = hidden, self.store.number_tokens(counts)
        out = self.run_layers(inputs, self.store.build_token_pass(counts))
        self.store.keep(counts)
        for state, budget in zip(states, budgets, strict=True):
            state.work.forwards += self.network.prefixed and budget > 0
        return self.store.select_last(out, counts)

    def observe(self, state: UnreadState, tree: DraftTree, out: TargetOutput, verified: Verification) -> None:
        state.observe(out, verified)
