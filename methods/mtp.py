"""Multi-token prediction (DeepSeek-AI 2024, section 2.2): the modules that the target was trained with draft.

A module reads the target's last hidden state and the token after it, through one decoder layer of the target's class, and shares
the target's embeddings and head. A single module drafts further tokens by reading its own output; several modules draft one token
each.
"""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from methods.eagle import ROOM, EagleDrafter, EagleState
from methods.mtp_files import MODULES, read_modules
from methods.mtp_layers import TargetLayers
from specbench.bounds import Depth
from specbench.decoding.language_model import LanguageModel
from specbench.decoding.tree import DraftTree
from specbench.decoding.tree_batch import pad_rows
from specbench.drafters.chains import Chains
from specbench.drafters.config_keys import FLAG, POSITIVE, Rule, require_equal, require_whole
from specbench.drafters.keeping import count_unread
from specbench.drafters.layers import Rotary
from specbench.drafters.lesson import Lesson, LessonLoss, TrainingPass, divergence, mean
from specbench.drafters.network import Checkpoint, DraftNetwork, TargetShape, draw_layer_inputs
from specbench.errors import InputError

MOST = 8  # modules
STEPS, DECAY = 3, 0.6  # of the loss: tokens ahead, and a step's weight relative to the step before (Cai et al. 2025, FastMTP)


class MtpModule(nn.Module):
    """Norms of an embedding and of a hidden state, a projection of both, a decoder layer, and the norm before the head."""

    def __init__(self, layers: TargetLayers, config: Any, index: int) -> None:
        super().__init__()
        self.enorm, self.hnorm = layers.build_norm(config), layers.build_norm(config)
        self.eh_proj = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        self.block = layers.build_layer(config, index)
        self.norm = layers.build_norm(config)


class MtpNetwork(DraftNetwork):
    """The modules of a target. `of` makes it for one target's class of layers."""

    files = ("pytorch_model.bin",)
    writes_hidden = ("eh_proj.weight", "o_proj.weight", "down_proj.weight")
    hidden_vectors: Mapping[str, int] = {"eh_proj.weight": 2}
    target_layers: ClassVar[TargetLayers] = TargetLayers()

    @classmethod
    def of(cls, target: LanguageModel) -> "type[MtpNetwork]":
        return type(cls.__name__, (cls,), {"target_layers": TargetLayers.of(target)})

    def __init__(self, config: Mapping[str, Any], shape: TargetShape) -> None:
        super().__init__(config, shape)
        self.layer_config = self.target_layers.build_config(self.config, shape)
        modules = (MtpModule(self.target_layers, self.layer_config, index) for index in range(self.config[MODULES]))
        self.layers: Any = nn.ModuleList(modules)

    def __len__(self) -> int:
        return len(self.layers)

    @classmethod
    def list_keys(cls, shape: TargetShape) -> Mapping[str, Rule]:
        sizes = {name: require_equal(size, "the target's") for name, size in shape.get_layer_sizes().items()}
        flags = dict.fromkeys(("mtp_hidden_states_first", "chain_hidden_post_norm"), FLAG)
        return {**sizes, "rms_norm_eps": POSITIVE, MODULES: require_whole(most=MOST, required=True), **flags}

    @classmethod
    def create_config(cls, shape: TargetShape) -> dict[str, Any]:
        return {**shape.get_layer_sizes(), MODULES: 1, "mtp_hidden_states_first": False, "chain_hidden_post_norm": True}

    @classmethod
    def read_target(cls) -> Checkpoint:
        return read_modules(cls.target_layers)

    def init_weights(self, target: LanguageModel) -> None:
        """Start with a projection that passes both inputs on, and the target's final norm."""
        final = next((module for name, module in target.decoder.named_children() if "norm" in name), None)
        for module in self.layers:
            hidden = self.layer_config.hidden_size
            module.eh_proj.weight.data.copy_(torch.eye(hidden).repeat(1, 2) / 2)
            if isinstance(final, nn.Module) and module.norm.weight.shape == final.get_parameter("weight").shape:
                module.norm.weight.data.copy_(final.get_parameter("weight"))

    def attach_target(self, target: LanguageModel) -> None:
        self._embed, self._head, self._head_dtype = target.embedding.forward, target.head.forward, target.dtype
        self.rotary = Rotary.of_module(target.decoder, target.context + ROOM, self.layers[0].eh_proj.weight)

    def forward(self, hidden: Tensor, tokens: Tensor, positions: Tensor, forward_pass: Any, module: int = 0) -> Tensor:
        """hidden g_t (B, N, H), tokens x_{t+1} (B, N), positions (B, N) -> (B, N, H) before the module's last norm."""
        own = self.layers[module]
        read = [own.enorm(self._embed(tokens).to(hidden.dtype)), own.hnorm(hidden)]
        if self.config.get("mtp_hidden_states_first"):
            read.reverse()
        rotary = self.rotary.get_cos_sin(positions)
        fused = own.eh_proj(torch.cat(read, dim=-1))
        return cast(Tensor, own.block(fused, position_embeddings=rotary, attention_mask=None, forward_pass=forward_pass))

    def pass_on(self, out: Tensor, module: int = 0) -> Tensor:
        """Return what the next module, or the same one, reads of an output (B, N, H)."""
        return cast(Tensor, self.layers[module].norm(out)) if self.config.get("chain_hidden_post_norm", True) else out

    def list_layer_inputs(self, nodes: int) -> list[tuple[Tensor, ...]]:
        return [draw_layer_inputs(self, self.layer_config.hidden_size, nodes)] if len(self) == 1 else []

    def compute_logits(self, out: Tensor, module: int = 0) -> Tensor:
        """(..., H) -> (..., V)."""
        return cast(Tensor, self._head(self.layers[module].norm(out).to(self._head_dtype)))

    def compute_loss(self, lesson: Lesson) -> LessonLoss:
        """Cross-entropy with the target's distribution, STEPS tokens ahead; the tokens before are the text's."""
        positions = torch.arange(lesson.ids.shape[1], device=lesson.ids.device)[None]
        hidden, rounds, losses, right = lesson.hidden, TrainingPass(), [], []
        steps = STEPS if len(self) == 1 else len(self)
        for step in range(steps):
            module = step if len(self) > 1 else 0
            out = self(hidden, lesson.ids.roll(-1 - step, dims=1), positions + step, rounds, module)
            mask, tokens = lesson.select_ahead(2 + step)
            logits = self.compute_logits(out[mask], module)
            losses.append(DECAY**step * divergence(logits, lesson.compute_teacher(mask, 2 + step)))
            right.append(mean(logits.argmax(-1) == tokens))
            hidden = self.pass_on(out, module)
            if len(self) == 1:
                rounds.advance_round()
        return LessonLoss(torch.stack(losses).sum() / sum(DECAY**step for step in range(steps)), right)


class Mtp(EagleDrafter):
    """Drafts chains of `draft_tokens`. checkpoint: `target` for the modules in the target's own files."""

    network_class: ClassVar[type[Any]] = MtpNetwork
    draws = True

    def __init__(self, checkpoint: str | None, draft_tokens: Depth, dtype: str) -> None:
        super().__init__(checkpoint, dtype)
        self.draft_tokens = draft_tokens

    @classmethod
    def get_network_class(cls, target: LanguageModel) -> type[Any]:
        return MtpNetwork.of(target)

    def bind(self, target: LanguageModel) -> None:
        super().bind(target)
        if 1 < len(self.network) < self.draft_tokens:
            raise InputError(f"draft_tokens={self.draft_tokens}: the target's {len(self.network)} modules draft one token each")

    def propose(self, states: list[EagleState], budgets: list[int]) -> list[DraftTree]:
        if len(self.network) == 1 or not any(budgets):
            return super().propose(states, budgets)
        return self._run_modules(states, budgets)

    def _start_chains(self, states: list[EagleState], roots: Iterable[Tensor], budgets: list[int]) -> Chains:
        return Chains([state.verifier for state in states], list(roots), [min(self.draft_tokens, budget) for budget in budgets])

    def _grow_trees(self, states: list[EagleState], roots: Tensor, hidden: Tensor, budgets: list[int]) -> list[DraftTree]:
        """With one module, which reads its own output again and again."""
        chains = self._start_chains(states, roots, budgets)
        chains.pick(self.network.compute_logits(hidden)[:, 0])
        while chains.depth < chains.deepest:
            self._count_forward(states, [length > chains.depth for length in chains.lengths])
            visible = torch.ones(1, 1, chains.depth, dtype=torch.bool, device=roots.device).expand(len(states), -1, -1)
            hidden = self._expand_level(chains.depth, self.network.pass_on(hidden), chains.tokens[:, None], visible)
            chains.pick(self.network.compute_logits(hidden)[:, 0])
        return chains.build_trees()

    def _run_modules(self, states: list[EagleState], budgets: list[int]) -> list[DraftTree]:
        """Each module reads the output of the one before, one token further.

        Rows of drafted tokens are read again in the next step.
        """
        chains = self._start_chains(states, [state.tokens[-1:] for state in states], budgets)
        counts = count_unread([len(state.tokens) for state in states], budgets, self.store.lengths)
        hidden, tokens = (
            pad_rows([rows[:count] for rows, count in zip(unread, counts, strict=True)])
            for unread in ([state.hidden for state in states], [state.tokens for state in states])
        )
        hidden, positions = hidden.to(self.network.dtype), self.store.number_tokens(counts)
        layer_pass = self.store.build_token_pass(counts)
        modules = chains.deepest if all(self.store.lengths) else len(self.network)  # all modules read a new text
        for module in range(modules):
            out = self.network(hidden, tokens, positions, layer_pass, module)
            if module < chains.deepest:
                chains.pick(self.network.compute_logits(self.store.select_last(out, counts), module)[:, 0])
            self._count_forward(states, [length > module for length in chains.lengths])
            hidden, tokens = self.network.pass_on(out, module), self.store.shift(tokens, chains.tokens, counts)
        kept = [max(0, count - len(self.network) + 1) for count in counts]
        self.store.keep(kept)
        for state, count in zip(states, kept, strict=True):
            state.take(count)
        return chains.build_trees()
