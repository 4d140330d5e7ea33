"""EAGLE-1 (Li et al. 2024a) and EAGLE-2 (Li et al. 2024b): one decoder layer continues the target's hidden states.

The pair of a hidden state f_t (after the final norm) and the token x_{t+1} stands at position t; the layer's output is read by
the target's own head and serves as the hidden state of the next level. EAGLE-1 fills a static tree, EAGLE-2 grows the
tree where the drafter is sure.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from specbench.decoding.attention import ChainBias
from specbench.decoding.drafter import SequenceContext
from specbench.decoding.language_model import LanguageModel, TargetOutput
from specbench.decoding.tree import DraftTree, TreeShape
from specbench.decoding.verify import Verification, Verifier
from specbench.drafters.keeping import KeepingDrafter
from specbench.drafters.layers import DraftKV, LayerPass, Rotary
from specbench.drafters.lesson import Lesson, LessonLoss, TrainingPass, divergence, mean
from specbench.drafters.network import DraftNetwork, TargetShape, build_layer_config, embedding_scale
from specbench.drafters.network_drafter import NetworkDrafter

NOISE = 0.1  # half the width of the uniform noise on the hidden states in training (EAGLE-1, on training the draft model)
ROOM = 256  # KV entries and positions for the expanded nodes of one tree
TOKEN_WEIGHT = 0.1  # of the token loss beside the regression of hidden states (as above)


class EagleNetwork(DraftNetwork):
    """fc and one Llama layer without its first norm; the target's head. Embeddings are a copy of the target's."""

    files = ("pytorch_model.bin",)
    unused = ("layers.0.self_attn.rotary_emb",)
    writes_hidden = ("embed_tokens.weight", "fc.weight", "fc.bias", "o_proj.weight", "down_proj.weight")
    beside: Mapping[str, int] = {"fc.weight": 2}

    def __init__(self, config: Mapping[str, Any], shape: TargetShape) -> None:
        super().__init__(config, shape)
        self.layer_config = build_layer_config(self.config, shape)
        hidden = self.layer_config.hidden_size
        self.embed_tokens = nn.Embedding(self.layer_config.vocab_size, hidden)
        self.fc = nn.Linear(2 * hidden, hidden, bias=self.config.get("bias", True))
        self.layers = nn.ModuleList(
            [_remove_input_norm(LlamaDecoderLayer(self.layer_config, 0), self.config.get("qkv_bias", False))]
        )

    @classmethod
    def create_config(cls, shape: TargetShape) -> dict[str, Any]:
        return {**shape.get_layer_sizes(), "hidden_act": "silu", "rope_theta": 10000.0}

    def init_weights(self, target: LanguageModel) -> None:
        """Tokens begin as loud as hidden states: much softer ones are noticed late."""
        self.embed_tokens.weight.data.copy_(target.embedding.weight)  # type: ignore[arg-type]
        self.embed_tokens.weight.requires_grad_(False)
        self.fc.weight.data[:, : self.embed_tokens.embedding_dim] *= embedding_scale(target)

    def attach_target(self, target: LanguageModel) -> None:
        self.rotary = Rotary(self.layer_config, target.context + ROOM, self.fc.weight)
        self._head, self._head_dtype = target.head.forward, target.dtype

    def forward(self, hidden: Tensor, tokens: Tensor, positions: Tensor, forward_pass: LayerPass) -> Tensor:
        """hidden (B, N, H), tokens (B, N), positions (N,) -> (B, N, H), the hidden states one place further."""
        read = self.fc(torch.cat([self.embed_tokens(tokens), hidden], dim=-1))
        return self.layers[0](read, position_embeddings=self.rotary.get_cos_sin(positions), forward_pass=forward_pass)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """(N, H) -> (N, draft vocabulary)."""
        return self._head(hidden.to(self._head_dtype))

    def to_target_tokens(self, tokens: Tensor) -> Tensor:
        """Ids of the draft vocabulary -> ids of the target's."""
        return tokens

    def compute_loss(self, lesson: Lesson) -> LessonLoss:
        """Smooth L1 to the target's next hidden state, and cross-entropy with what the target makes of that."""
        hidden = lesson.hidden
        if self.training:
            hidden = hidden + (torch.rand_like(hidden) - 0.5) * 2 * NOISE
        positions = torch.arange(lesson.ids.shape[1], device=lesson.ids.device)
        guessed = self(hidden, lesson.ids.roll(-1, dims=1), positions, TrainingPass())
        there, tokens = lesson.select_ahead(2)
        states, logits = guessed[there], self.compute_logits(guessed[there])
        wanted = lesson.last.roll(-1, dims=1)[there].float()
        regression = mean(nn.functional.smooth_l1_loss(states.float(), wanted, reduction="none"))
        loss = regression + TOKEN_WEIGHT * divergence(logits, lesson.compute_teacher(there, 2))
        return LessonLoss(loss, [mean(logits.argmax(-1) == tokens)])


def _remove_input_norm(layer: LlamaDecoderLayer, biased: bool) -> LlamaDecoderLayer:
    layer.input_layernorm = nn.Identity()  # type: ignore[assignment]
    if biased:  # as in Qwen2: queries, keys and values have biases, the output has none
        attention = layer.self_attn
        for name in ("q_proj", "k_proj", "v_proj"):
            old = getattr(attention, name)
            setattr(attention, name, nn.Linear(old.in_features, old.out_features))
    return layer


@dataclass
class EagleState:
    """hidden (n, taps * H) and tokens (n): pairs that the drafter has not read yet, the root last."""

    kv: DraftKV
    verifier: Verifier
    hidden: Tensor
    tokens: list[int]


class EagleDrafter(NetworkDrafter, KeepingDrafter[DraftKV]):
    """What EAGLE's drafters share: reading what was committed, and feeding a tree level by level."""

    network_class: ClassVar[type[Any]] = EagleNetwork

    def bind(self, target: LanguageModel) -> None:
        super().bind(target)
        self._bias = ChainBias(self.network.dtype, target.device)

    def create_store(self, capacity: int) -> DraftKV:
        return DraftKV(capacity + ROOM, self._bias)

    def start_in(self, store: DraftKV, prompt: list[int], out: TargetOutput, context: SequenceContext) -> EagleState:
        return EagleState(store, context.verifier, out.hidden, prompt[1:])

    def draft(self, state: EagleState, budget: int) -> DraftTree:
        root = self.to_tensor(state.tokens[-1:])
        if budget == 0:
            return DraftTree.chain(root)
        hidden = self._catch_up(state)
        tree = self._grow_tree(state, root, hidden, budget)
        state.kv.drop()
        return tree

    def _catch_up(self, state: EagleState) -> Tensor:
        """(1, H) behind the root, once all that was committed has gone through the drafter."""
        count = len(state.tokens)
        positions = torch.arange(state.kv.length, state.kv.length + count, device=self.target.device)
        out = self._forward(state.hidden, self.to_tensor(state.tokens), positions, state.kv.build_token_pass(count))
        state.kv.keep(count)
        state.hidden, state.tokens = state.hidden[:0], []
        return out[-1:]

    def _forward(self, hidden: Tensor, tokens: Tensor, positions: Tensor, forward_pass: LayerPass) -> Tensor:
        self.draft_forwards += 1
        return self.network(hidden[None].to(self.network.dtype), tokens[None], positions, forward_pass)[0]

    def _expand_level(self, kv: DraftKV, depth: int, hidden: Tensor, tokens: Tensor, visible: Tensor) -> Tensor:
        """(m, H) behind the m expanded nodes of a depth (1: the root's children), which stay for the levels below."""
        positions = torch.full((len(tokens),), kv.length + depth - 1, device=tokens.device)
        out = self._forward(hidden, tokens, positions, kv.build_level_pass(visible))
        kv.stack(len(tokens))
        return out

    def _grow_tree(self, state: EagleState, root: Tensor, hidden: Tensor, budget: int) -> DraftTree:
        """The draft tree; hidden (1, H) is what the drafter made of the root."""
        raise NotImplementedError

    def observe(self, state: EagleState, tree: DraftTree, out: TargetOutput, verified: Verification) -> None:
        state.hidden = torch.cat([state.hidden, out.hidden[verified.path]])
        state.tokens += verified.tokens


class Eagle(EagleDrafter):
    """EAGLE-1: each expanded node of a static tree (`tree`: its paths) takes its own most probable children.

    Above temperature 0 as many are drawn without replacement from the drafter's distribution, in the order of their ranks.
    """

    draws = True

    def __init__(self, checkpoint: str | None, tree: Mapping[str, Any], dtype: str) -> None:
        super().__init__(checkpoint, dtype)
        self.paths = tree["paths"]

    def bind(self, target: LanguageModel) -> None:
        super().bind(target)
        self.tree = TreeShape(self.paths, target.device)
        self.nodes = len(self.tree)

    def _grow_tree(self, state: EagleState, root: Tensor, hidden: Tensor, budget: int) -> DraftTree:
        shape, drafted, drawn_from = self.tree.cut(budget), [root], []
        for depth, level in enumerate(shape.levels, start=1):
            ranked, weights = state.verifier.rank(self.network.compute_logits(hidden), self.tree.width)  # (m, width), (m, V)
            tokens = ranked[level.rows, level.ranks if weights is None else level.places]
            drafted.append(tokens)
            if weights is not None:
                drawn_from.append(weights)
            if depth < shape.depth:
                hidden = self._expand_level(
                    state.kv, depth, hidden[level.rows[level.expanded]], tokens[level.expanded], level.visible
                )
        return shape.build_tree(torch.cat(drafted), torch.cat(drawn_from) if drawn_from else None)


class Eagle2(EagleDrafter):
    """EAGLE-2: `top_k` nodes are expanded at each of `depth` levels; the most probable `total_tokens` - 1 nodes make the tree.

    Scores are sums of log-probabilities in float32; of equal ones the node drafted first counts, so a parent before its child.
    """

    def __init__(self, checkpoint: str | None, total_tokens: int, depth: int, top_k: int, dtype: str) -> None:
        super().__init__(checkpoint, dtype)
        self.total_tokens, self.depth, self.top_k = total_tokens, depth, top_k
        self.nodes = total_tokens

    def _grow_tree(self, state: EagleState, root: Tensor, hidden: Tensor, budget: int) -> DraftTree:
        k = self.top_k
        logs, best = self._rank_children(hidden)  # (1, k) each
        scores, tokens = [logs[0]], [best[0]]
        above = [torch.full_like(best[0], -1)]  # the candidate each was drafted from, -1: the root
        at, hidden = torch.arange(k, device=root.device), hidden.expand(k, -1)  # the current nodes, as candidates
        visible = torch.eye(k, dtype=torch.bool, device=root.device)
        eye = visible
        for depth in range(1, min(self.depth + 1, budget)):
            hidden = self._expand_level(state.kv, depth, hidden, torch.cat(tokens)[at], visible)
            logs, best = self._rank_children(hidden)  # (k, k) each
            sums = (torch.cat(scores)[at][:, None] + logs).flatten()
            first = sum(len(some) for some in scores)
            scores, tokens, above = [*scores, sums], [*tokens, best.flatten()], [*above, at.repeat_interleave(k)]
            chosen = _select_best(sums, k)
            rows = chosen // k
            at, hidden = first + chosen, hidden[rows]
            visible = torch.cat([visible[rows], eye], dim=1)
        return self._select_tree(root, torch.cat(scores), torch.cat(tokens), torch.cat(above))

    def _rank_children(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """(m, H) -> log-probabilities in float32 and ids in the target's vocabulary of the top k tokens, (m, k) each."""
        found = self.network.compute_logits(hidden).float().log_softmax(dim=-1).topk(self.top_k)
        return found.values, self.network.to_target_tokens(found.indices)

    def _select_tree(self, root: Tensor, scores: Tensor, tokens: Tensor, above: Tensor) -> DraftTree:
        """The best candidates as a tree, in the order in which they were drafted."""
        kept = _select_best(scores, self.total_tokens - 1).sort().values
        parents = torch.searchsorted(kept, above[kept]) + 1
        parents = torch.where(above[kept] < 0, 0, parents)
        return DraftTree(torch.cat([root, tokens[kept]]), torch.cat([parents.new_tensor([-1]), parents]))


def _select_best(scores: Tensor, count: int) -> Tensor:
    """Indices of the highest scores, of equal ones the first."""
    return scores.sort(descending=True, stable=True).indices[:count]
