"""EAGLE-1 (Li et al. 2024a) and EAGLE-2 (Li et al. 2024b): one decoder layer continues the target's hidden states.

At position t it reads the hidden state f_t (after the final norm) and the token x_{t+1}, and predicts f_{t+1}: the target's head
turns that into the distribution of x_{t+2}, and the next level reads it as its hidden state. EAGLE-1 fills a static tree, EAGLE-2
grows the tree where the drafter is confident.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from specbench.bounds import Depth, StaticTree, Within
from specbench.decoding.drafter import DraftWork, SequenceContext
from specbench.decoding.language_model import LanguageModel, TargetOutput
from specbench.decoding.static import StaticPass
from specbench.decoding.tree import DraftTree, TreeShape
from specbench.decoding.tree_batch import fill_shapes, pad_rows
from specbench.decoding.verify import Verification, Verifier
from specbench.decoding.verify_group import rank_group
from specbench.drafters.config_keys import FLAG, Rule, require_equal
from specbench.drafters.keeping import count_unread
from specbench.drafters.layers import LayerPass, Rotary
from specbench.drafters.lesson import Lesson, LessonLoss, TrainingPass, divergence, mean
from specbench.drafters.network import (
    DEFAULT_EPS,
    Checkpoint,
    DraftNetwork,
    TargetShape,
    build_layer_config,
    draw_layer_inputs,
    embedding_scale,
    list_layer_keys,
)
from specbench.drafters.network_drafter import LayerDrafter
from specbench.errors import InputError

NOISE = 0.1  # training adds noise drawn from U(-0.1, 0.1) to the hidden states (EAGLE-1, "Training of the draft models")
ROOM = 256  # KV entries and positions reserved for the expanded nodes of one tree
TOKEN_WEIGHT = 0.1  # w_cls in L = L_reg + w_cls * L_cls (EAGLE-1)


class EagleNetwork(DraftNetwork):
    """fc, one Llama layer without its input norm, the target's embeddings or a copy of them, and the target's own head."""

    files = ("pytorch_model.bin",)
    unused = ("layers.0.self_attn.rotary_emb",)
    writes_hidden = ("embed_tokens.weight", "fc.weight", "fc.bias", "o_proj.weight", "down_proj.weight")
    hidden_vectors: Mapping[str, int] = {"fc.weight": 2}

    def __init__(self, config: Mapping[str, Any], shape: TargetShape) -> None:
        super().__init__(config, shape)
        self.layer_config = build_layer_config(self.config, shape)
        hidden = self.layer_config.hidden_size
        if self.config.get("own_embeddings", True):
            self.embed_tokens = nn.Embedding(self.layer_config.vocab_size, hidden)
        self.fc = nn.Linear(2 * hidden, hidden, bias=self.config.get("bias", True))
        layer = _remove_input_norm(LlamaDecoderLayer(self.layer_config, 0), self.config.get("qkv_bias", False))
        self.layers = nn.ModuleList([layer])

    @classmethod
    def list_keys(cls, shape: TargetShape) -> Mapping[str, Rule]:
        hidden = require_equal(shape.hidden_size, "the target's, whose hidden states it continues", required=True)
        flags = ("bias", "qkv_bias", "tie_word_embeddings", "own_embeddings")  # the head is the target's: never tied
        return {**list_layer_keys(shape), "hidden_size": hidden, **dict.fromkeys(flags, FLAG)}

    @classmethod
    def create_config(cls, shape: TargetShape) -> dict[str, Any]:
        return {**shape.get_layer_sizes(), "hidden_act": "silu", "rope_theta": 10000.0}

    @classmethod
    def normalise_checkpoint(cls, config: dict[str, Any], tensors: dict[str, Tensor], shape: TargetShape) -> Checkpoint:
        defaults = {"rms_norm_eps": DEFAULT_EPS, "own_embeddings": "embed_tokens.weight" in tensors}
        return {**defaults, **config}, tensors

    def init_weights(self, target: LanguageModel) -> None:
        """Start with the target's embeddings, scaled to the size of hidden states; much smaller inputs are learned late."""
        if self.config.get("own_embeddings", True):
            self.embed_tokens.weight.data.copy_(target.embedding.get_parameter("weight"))
            self.embed_tokens.weight.requires_grad_(False)
        self.fc.weight.data[:, : self.layer_config.hidden_size] *= embedding_scale(target)

    def attach_target(self, target: LanguageModel) -> None:
        self.rotary = Rotary(self.layer_config, target.context + ROOM, self.fc.weight)
        self._head, self._head_dtype = target.head.forward, target.dtype
        self._embed = self.embed_tokens.forward if self.config.get("own_embeddings", True) else target.embedding.forward

    def forward(self, hidden: Tensor, tokens: Tensor, positions: Tensor, forward_pass: LayerPass) -> Tensor:
        """hidden f_t (B, N, H), tokens x_{t+1} (B, N), positions (B, N) -> predicted hidden states f_{t+1} (B, N, H)."""
        fused = self.fc(torch.cat([self._embed(tokens).to(hidden.dtype), hidden], dim=-1))
        rotary = self.rotary.get_cos_sin(positions)
        return cast(Tensor, self.layers[0](fused, position_embeddings=rotary, forward_pass=forward_pass))

    def list_layer_inputs(self, nodes: int) -> list[tuple[Tensor, ...]]:
        return [draw_layer_inputs(self, self.layer_config.hidden_size, nodes)]

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """(..., H) -> (..., draft vocabulary)."""
        return cast(Tensor, self._head(hidden.to(self._head_dtype)))

    def to_target_tokens(self, tokens: Tensor) -> Tensor:
        """Map ids of the draft vocabulary to ids of the target's."""
        return tokens

    def compute_loss(self, lesson: Lesson) -> LessonLoss:
        """L = L_reg + w_cls * L_cls: smooth L1 to f_{t+1}, and cross-entropy with the target's distribution of x_{t+2}."""
        hidden = lesson.hidden
        if self.training:
            hidden = hidden + (torch.rand_like(hidden) - 0.5) * 2 * NOISE
        positions = torch.arange(lesson.ids.shape[1], device=lesson.ids.device)[None]
        mask, tokens = lesson.select_ahead(2)
        states = self(hidden, lesson.ids.roll(-1, dims=1), positions, TrainingPass())[mask]  # (n, H)
        logits = self.compute_logits(states)
        expected = lesson.last.roll(-1, dims=1)[mask].float()
        regression = mean(nn.functional.smooth_l1_loss(states.float(), expected, reduction="none"))
        loss = regression + TOKEN_WEIGHT * divergence(logits, lesson.compute_teacher(mask, 2))
        return LessonLoss(loss, [mean(logits.argmax(-1) == tokens)])


def _remove_input_norm(layer: LlamaDecoderLayer, biased: bool) -> LlamaDecoderLayer:
    layer.input_layernorm = nn.Identity()  # type: ignore[assignment]
    if biased:  # as in Qwen2: on queries, keys and values only
        for name in ("q_proj", "k_proj", "v_proj"):
            old = getattr(layer.self_attn, name)
            setattr(layer.self_attn, name, nn.Linear(old.in_features, old.out_features))
    return layer


@dataclass
class EagleState:
    """hidden (n, taps * H) and tokens (n): committed pairs that the drafter has not read yet, the root's last."""

    verifier: Verifier
    work: DraftWork
    hidden: Tensor
    tokens: Tensor

    def take(self, count: int) -> tuple[Tensor, Tensor]:
        """Return the first `count` pairs, (count, taps * H) and (count,), which are read now."""
        hidden, tokens = self.hidden[:count], self.tokens[:count]
        self.hidden, self.tokens = self.hidden[count:], self.tokens[count:]
        return hidden, tokens


class EagleDrafter(LayerDrafter):
    """What all EAGLE drafters share: reading committed tokens, and drafting trees level by level, those of a batch together."""

    network_class: ClassVar[type[Any]] = EagleNetwork
    room = ROOM

    def start(self, prompt: list[int], out: TargetOutput, context: SequenceContext) -> EagleState:
        return EagleState(context.verifier, context.work, out.hidden, self.to_tensor(prompt[1:]))

    def propose(self, states: list[EagleState], budgets: list[int]) -> list[DraftTree]:
        roots = [state.tokens[-1:] for state in states]
        if not any(budgets):
            return [DraftTree.chain(root) for root in roots]
        hidden = self._catch_up(states, budgets)
        trees = self._grow_trees(states, pad_rows(roots), hidden, budgets)
        self.store.drop()
        return [tree if budget else DraftTree.chain(root) for tree, root, budget in zip(trees, roots, budgets, strict=True)]

    def _catch_up(self, states: list[EagleState], budgets: list[int]) -> Tensor:
        """Run the drafter over committed tokens; return its output for each root, (B, 1, H)."""
        counts = count_unread([len(state.tokens) for state in states], budgets, self.store.lengths)
        taken = zip(*(state.take(count) for state, count in zip(states, counts, strict=True)), strict=True)
        hidden, tokens = (pad_rows(list(rows)) for rows in taken)
        out = self._forward(hidden, tokens, self.store.number_tokens(counts), self.store.build_token_pass(counts))
        self.store.keep(counts)
        self._count_forward(states, [budget > 0 for budget in budgets])
        return self.store.select_last(out, counts)

    def _count_forward(self, states: list[EagleState], drafting: list[bool]) -> None:
        for state, drafts in zip(states, drafting, strict=True):
            state.work.forwards += drafts

    def _forward(self, hidden: Tensor, tokens: Tensor, positions: Tensor, forward_pass: LayerPass | StaticPass) -> Tensor:
        return self.run_layers((hidden.to(self.network.dtype), tokens, positions), forward_pass)

    def _expand_level(self, depth: int, hidden: Tensor, tokens: Tensor, visible: Tensor) -> Tensor:
        """Run the m expanded nodes of a depth (1: the root's children) -> (B, m, H); their KV stays for the levels below."""
        positions = self.store.number(1, depth - 1).expand(tokens.shape)
        out = self._forward(hidden, tokens, positions, self.store.build_level_pass(visible))
        self.store.stack(tokens.shape[1])
        return out

    def _grow_trees(self, states: list[EagleState], roots: Tensor, hidden: Tensor, budgets: list[int]) -> list[DraftTree]:
        """Return the draft trees; the tree of a sequence without a budget is meaningless.

        roots (B, 1). hidden (B, 1, H): the drafter's outputs for them.
        """
        raise NotImplementedError

    def observe(self, state: EagleState, tree: DraftTree, out: TargetOutput, verified: Verification) -> None:
        state.hidden = torch.cat([state.hidden, out.hidden.index_select(0, verified.path_ids)])
        state.tokens = torch.cat([state.tokens, verified.token_ids])


class Eagle(EagleDrafter):
    """EAGLE-1: a static tree (`tree`: its paths) whose expanded nodes take their most probable tokens as children.

    Above temperature 0 the children are drawn from the drafter's distribution without replacement.
    """

    draws = True

    def __init__(self, checkpoint: str | None, tree: StaticTree, dtype: str) -> None:
        super().__init__(checkpoint, dtype)
        self.paths = tree["paths"]

    def bind(self, target: LanguageModel) -> None:
        super().bind(target)
        self.tree = TreeShape(self.paths, target.device)
        self.nodes = len(self.tree)

    def _grow_trees(self, states: list[EagleState], roots: Tensor, hidden: Tensor, budgets: list[int]) -> list[DraftTree]:
        shapes = [self.tree.cut(budget) for budget in budgets]
        deepest = max(shapes, key=lambda shape: shape.depth)
        drafted, drawn_from = [roots], []
        for depth, level in enumerate(deepest.levels, start=1):
            logits, drafting = self.network.compute_logits(hidden), [shape.depth >= depth for shape in shapes]
            ranked, q = rank_group([state.verifier for state in states], logits, self.tree.width, drafting)
            tokens = ranked[:, level.rows, level.ranks if q is None else level.places]  # (B, n)
            drafted.append(tokens)
            if q is not None:
                drawn_from.append(q)
            if depth < deepest.depth:
                above = hidden[:, level.rows[level.expanded]]
                visible = level.visible.repeat(len(states), 1, 1)
                hidden = self._expand_level(depth, above, tokens[:, level.expanded], visible)
                self._count_forward(states, [shape.depth > depth for shape in shapes])
        return fill_shapes(shapes, torch.cat(drafted, dim=1), torch.cat(drawn_from, dim=1) if drawn_from else None)


class Eagle2(EagleDrafter):
    """EAGLE-2: expand the best `top_k` nodes at each of `depth` levels, then keep the best `total_tokens` - 1 nodes (section 4).

    A node's value is the product of the draft probabilities on its path, here a sum of logarithms in float32. Of equal values
    the node drafted first wins, so a parent precedes its children.
    """

    def __init__(
        self, checkpoint: str | None, total_tokens: Annotated[int, Within(2, 1024)], depth: Depth, top_k: Depth, dtype: str
    ) -> None:
        super().__init__(checkpoint, dtype)
        if depth * top_k > ROOM:
            raise InputError(f"eagle: depth={depth} × top_k={top_k} expands more nodes than {ROOM}")
        self.total_tokens, self.depth, self.top_k = total_tokens, depth, top_k
        self.nodes = total_tokens

    def _grow_trees(self, states: list[EagleState], roots: Tensor, hidden: Tensor, budgets: list[int]) -> list[DraftTree]:
        k, rows = self.top_k, torch.arange(len(states), device=roots.device)[:, None]
        deepest = [min(self.depth + 1, budget) for budget in budgets]
        log_q, best = self._rank_children(hidden)  # (B, 1, k) each
        values, tokens = log_q[:, 0], best[:, 0]  # (B, C) of all candidates so far
        parents = torch.full_like(tokens, -1)  # (B, C) the candidate each was drafted from; -1: the root
        frontier = torch.arange(k, device=roots.device).expand(len(states), k)  # the nodes to expand, as candidates
        hidden = hidden.expand(-1, k, -1)
        visible = eye = torch.eye(k, dtype=torch.bool, device=roots.device).expand(len(states), -1, -1)
        for depth in range(1, max(deepest)):
            hidden = self._expand_level(depth, hidden, tokens.gather(1, frontier), visible)
            self._count_forward(states, [depth < most for most in deepest])
            log_q, best = self._rank_children(hidden)  # (B, k, k) each
            products = (values.gather(1, frontier)[:, :, None] + log_q).flatten(1)  # V_i = V_parent * q(x_i), as logarithms
            chosen = _select_best(products, k)
            parents = torch.cat([parents, frontier.repeat_interleave(k, dim=1)], dim=1)
            frontier, above = values.shape[1] + chosen, chosen // k
            values, tokens = torch.cat([values, products], dim=1), torch.cat([tokens, best.flatten(1)], dim=1)
            hidden, visible = hidden[rows, above], torch.cat([visible[rows, above], eye], dim=2)
        return self._select_trees(roots, values, tokens, parents, deepest)

    def _rank_children(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """(B, m, H) -> float32 log-probabilities and target ids of the top k tokens, (B, m, k) each."""
        best = self.network.compute_logits(hidden).float().log_softmax(dim=-1).topk(self.top_k)
        return best.values, self.network.to_target_tokens(best.indices)

    def _select_trees(
        self, roots: Tensor, values: Tensor, tokens: Tensor, candidates: Tensor, deepest: list[int]
    ) -> list[DraftTree]:
        """Rerank: return the best candidates as trees, in drafting order. candidates (B, C): each one's parent."""
        reached = [self.top_k + max(0, depth - 1) * self.top_k**2 for depth in deepest]  # candidates no deeper than that
        if min(reached) < values.shape[1]:
            limits = self.to_tensor(reached)[:, None]
            values = values.masked_fill(torch.arange(values.shape[1], device=values.device) >= limits, -torch.inf)
        kept = _select_best(values, self.total_tokens - 1).sort(dim=1).values
        above = candidates.gather(1, kept)
        parents = torch.where(above < 0, 0, torch.searchsorted(kept, above) + 1)
        parents = nn.functional.pad(parents, (1, 0), value=-1)
        tokens = torch.cat([roots, tokens.gather(1, kept)], dim=1)
        sizes = [min(self.total_tokens, 1 + count) for count in reached]
        rows = zip(tokens, parents, sizes, deepest, strict=True)
        return [DraftTree(own[:size], above[:size], deepest=depth) for own, above, size, depth in rows]


def _select_best(values: Tensor, count: int) -> Tensor:
    """Return the indices of the highest values (B, C), of equal ones the first -> (B, count)."""
    return values.sort(dim=1, descending=True, stable=True).indices[:, :count]
