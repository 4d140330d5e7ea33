"""Hydra (Ankner et al. 2024): heads that also read the tokens drafted before theirs; a static tree, each parent's own children.

The published recipe (prefix-mlp) puts one decoder layer over the target's hidden states in front of the heads.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm

from specbench.decoding.attention import ChainBias
from specbench.decoding.drafter import SequenceContext
from specbench.decoding.language_model import LanguageModel, TargetOutput
from specbench.decoding.tree import DraftTree
from specbench.decoding.verify import Verification
from specbench.drafters.keeping import KeepingDrafter
from specbench.drafters.layers import DraftKV, Rotary
from specbench.drafters.lesson import Lesson, LessonLoss, TrainingPass, divergence, mean
from specbench.drafters.network import DraftNetwork, TargetShape, build_layer_config, embedding_scale
from specbench.drafters.tree_heads import TreeHeads
from specbench.errors import InputError, suggest_choices

ARCHITECTURES = ("mlp", "prefix-mlp")
OTHERS = ("cross-attn", "eagle-attn")  # published as ablations
DECAY = 0.8  # of a head's weight in the loss with each position further ahead, as Medusa's


class HydraBlock(nn.Module):
    """Many vectors of H dimensions, or one, into one: W_r z + b_r + SiLU(W z + b); without W_r the input itself is added."""

    def __init__(self, vectors: int, hidden: int) -> None:
        super().__init__()
        self.linear = nn.Linear(vectors * hidden, hidden)
        self.res_connection = nn.Linear(vectors * hidden, hidden) if vectors > 1 else nn.Identity()

    def forward(self, read: Tensor) -> Tensor:
        """(..., vectors * H) -> (..., H)."""
        return self.res_connection(read) + nn.functional.silu(self.linear(read))

    def scale_tokens(self, scale: float) -> None:
        """All that is read beside the first vector counts so many times more."""
        for layer in (self.linear, self.res_connection):
            if isinstance(layer, nn.Linear):
                layer.weight.data[:, layer.out_features :] *= scale


class Prefix(nn.Module):
    """A Llama of one layer without embeddings."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList([LlamaDecoderLayer(config, 0)])
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, hidden: Tensor, position_embeddings: tuple[Tensor, Tensor], forward_pass: Any) -> Tensor:
        """(B, N, H) -> (B, N, H)."""
        return self.norm(self.layers[0](hidden, position_embeddings=position_embeddings, forward_pass=forward_pass))


class HydraNetwork(DraftNetwork):
    """Head i reads a hidden state, the root and i drafted tokens, and predicts the token i + 1 places behind the root."""

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
        _check_config(config)
        self.prefixed = config["hydra_head_arch"] == "prefix-mlp"
        heads, hidden = range(config["hydra_num_heads"]), shape.hidden_size
        if self.prefixed:
            self.layer_config = build_layer_config({}, shape)
            self.prefix_embeding_layer = Prefix(self.layer_config)  # the authors' spelling
        self.hydra_mlp = nn.ModuleList(
            [nn.Sequential(*self._insert_identities(_build_blocks(head + 2, hidden, config))) for head in heads]
        )
        self.hydra_lm_head = nn.ModuleList([self._wrap_head(nn.Linear(hidden, shape.vocab_size)) for _ in heads])
        first = 1 if self.prefixed else 0
        both = ("linear", "res_connection")
        self.beside = {f"hydra_mlp.{head}.{first}.{name}.weight": head + 2 for head in heads for name in both}

    def _insert_identities(self, blocks: list[nn.Module]) -> list[nn.Module]:
        """In the authors' prefix-mlp a dropout stands before every block."""
        return [module for block in blocks for module in (nn.Identity(), block)] if self.prefixed else blocks

    def _wrap_head(self, linear: nn.Linear) -> nn.Module:
        return nn.Sequential(nn.Identity(), linear) if self.prefixed else linear

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
        """Every head begins with the target's output head, and reads tokens as loud as hidden states."""
        scale = embedding_scale(target)
        for block in self.modules():
            if isinstance(block, HydraBlock):
                block.scale_tokens(scale)
        for head in self.hydra_lm_head:
            logits: Any = head[-1] if self.prefixed else head  # type: ignore[index]
            nn.init.zeros_(logits.bias)
            logits.weight.data.copy_(target.head.weight)

    def attach_target(self, target: LanguageModel) -> None:
        self._embed = target.embedding.forward
        if self.prefixed:
            self.rotary = Rotary(self.layer_config, target.context, self.prefix_embeding_layer.norm.weight)

    def apply_prefix(self, hidden: Tensor, positions: Tensor, forward_pass: Any) -> Tensor:
        """Hidden states (B, N, H) that the heads read, from the target's."""
        if not self.prefixed:
            return hidden
        return self.prefix_embeding_layer(hidden, self.rotary.get_cos_sin(positions), forward_pass)

    def embed(self, tokens: Tensor) -> Tensor:
        """(...) -> (..., H)."""
        return self._embed(tokens).to(self.dtype)

    def compute_logits(self, head: int, read: Tensor) -> Tensor:
        """read (m, (head + 2) H): a hidden state, the root's embedding and those of the drafted tokens -> (m, V)."""
        return self.hydra_lm_head[head](self.hydra_mlp[head](read))

    def compute_loss(self, lesson: Lesson) -> LessonLoss:
        """Cross-entropy of every head with the target's own distribution (Hydra++, section 4), weighted as Medusa's."""
        positions = torch.arange(lesson.ids.shape[1], device=lesson.ids.device)
        read, losses, right = self.apply_prefix(lesson.hidden, positions, TrainingPass()), [], []
        for head in range(len(self)):
            read = torch.cat([read, self.embed(lesson.ids.roll(-1 - head, dims=1))], dim=-1)
            there, tokens = lesson.select_ahead(head + 2)
            logits = self.compute_logits(head, read[there])
            losses.append(DECAY ** (head + 1) * divergence(logits, lesson.compute_teacher(there, head + 2)))
            right.append(mean(logits.argmax(-1) == tokens))
        return LessonLoss(torch.stack(losses).sum(), right)


def _check_config(config: Mapping[str, Any]) -> None:
    found = config.get("hydra_head_arch")
    if found in OTHERS:
        raise InputError(f"hydra_heads: the architecture {found} is not built; there is {', '.join(ARCHITECTURES)}")
    if found not in ARCHITECTURES:
        raise InputError(f"hydra_heads: hydra_head_arch={found}: expected {suggest_choices(str(found), list(ARCHITECTURES))}")
    if not config.get("grounded_heads", True):
        raise InputError("hydra_heads: heads that are not grounded read no drafted tokens: they are Medusa's; take method medusa")


def _build_blocks(vectors: int, hidden: int, config: Mapping[str, Any]) -> list[nn.Module]:
    """The first block takes all vectors; one further block is applied as often as there are layers beside it."""
    again = HydraBlock(1, hidden)
    return [HydraBlock(vectors, hidden), *[again] * (config.get("hydra_num_layers", 1) - 1)]


@dataclass
class HydraState:
    """hidden (n, H): of the target, not read yet; the last of them wrote the root."""

    kv: DraftKV
    hidden: Tensor
    root: int


class HydraHeads(TreeHeads, KeepingDrafter[DraftKV]):
    """Each expanded node has its own children."""

    network_class: ClassVar = HydraNetwork

    def bind(self, target: LanguageModel) -> None:
        super().bind(target)
        self._bias = ChainBias(self.network.dtype, target.device)

    def create_store(self, capacity: int) -> DraftKV:
        return DraftKV(capacity, self._bias)

    def start_in(self, store: DraftKV, prompt: list[int], out: TargetOutput, context: SequenceContext) -> HydraState:
        return HydraState(store, out.hidden, prompt[-1])

    def draft(self, state: HydraState, budget: int) -> DraftTree:
        shape, root = self.tree.cut(budget), self.to_tensor([state.root])
        if shape.depth == 0:
            return DraftTree.chain(root)
        read, drafted = torch.cat([self._catch_up(state), self.network.embed(root)], dim=-1), [root]
        for head, level in enumerate(shape.levels):
            best = self.network.compute_logits(head, read).topk(self.tree.width).indices  # (m, width)
            tokens = best[level.rows, level.ranks]
            drafted.append(tokens)
            read = torch.cat([read[level.rows[level.expanded]], self.network.embed(tokens[level.expanded])], dim=-1)
        return shape.build_tree(torch.cat(drafted))

    def _catch_up(self, state: HydraState) -> Tensor:
        """(1, H) behind the root, once all hidden states that came have gone through the prefix layer."""
        count = len(state.hidden)
        positions = torch.arange(state.kv.length, state.kv.length + count, device=self.target.device)
        out = self.network.apply_prefix(state.hidden[None].to(self.network.dtype), positions, state.kv.build_token_pass(count))
        state.kv.keep(count)
        state.hidden = state.hidden[:0]
        self.draft_forwards += self.network.prefixed
        return out[0, -1:]

    def observe(self, state: HydraState, tree: DraftTree, out: TargetOutput, verified: Verification) -> None:
        state.hidden, state.root = torch.cat([state.hidden, out.hidden[verified.path]]), verified.next_token
