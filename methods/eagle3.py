"""EAGLE-3 (Li et al. 2025): one layer over hidden states of three depths of the target, its own head, EAGLE-2's tree."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm

from methods.eagle import ROOM, Eagle2
from specbench.decoding.language_model import LanguageModel
from specbench.drafters.config_keys import FLAG, Rule, is_whole, require_equal, require_whole
from specbench.drafters.layers import Rotary
from specbench.drafters.lesson import Lesson, LessonLoss, TrainingPass, divergence, mean
from specbench.drafters.network import (
    DEFAULT_EPS,
    DraftNetwork,
    TargetShape,
    build_layer_config,
    draw_layer_inputs,
    list_layer_keys,
)
from specbench.errors import InputError

ROUNDS = 7  # of the training-time test (section 3.2)
DECAY = 0.8  # a round's weight in the loss, relative to the round before
TAPS = "eagle_aux_hidden_state_layer_ids"  # in config.json files of later runtimes; absent in the authors'
NESTED = "eagle_config"  # of SpecForge and SGLang: there, TAPS counts from a layer's output


def _choose_taps(layers: int) -> list[int]:
    """Return the inputs of layers 2, L/2 and L - 3, as the authors; of a target too shallow for these, others."""
    published = sorted((2, layers // 2, layers - 3))
    distinct = len(set(published)) == len(published) and min(published) >= 0
    return published if distinct else [max(0, layers // 2 - 1), layers // 2, max(layers // 2 + 1, layers - 1)]


def _require_taps(layers: int) -> Rule:
    return Rule(f"three different whole numbers from 0 to {layers}", lambda value: _are_taps(value, layers))


def _require_nested_taps(layers: int) -> Rule:
    allowed = {TAPS: lambda value: _are_taps(value, layers - 1), "use_aux_hidden_state": lambda value: value is True}
    return Rule(
        f"{{{TAPS}: three different layers from 0 to {layers - 1}}}",
        lambda value: isinstance(value, dict) and all(key in allowed and allowed[key](value[key]) for key in value),
    )


def _are_taps(value: Any, most: int) -> bool:
    whole = isinstance(value, list) and len(value) == 3 and all(is_whole(tap) and 0 <= tap <= most for tap in value)
    return whole and (len(set(value)) == 3 or most < 2)


def _move_taps(config: dict[str, Any]) -> dict[str, Any]:
    """Return the config with the taps of `eagle_config`, which name layers by their output, as numbers of the layers after."""
    nested = {key: value for key, value in config.items() if key == NESTED}
    given = [tap + 1 for tap in nested.get(NESTED, {}).get(TAPS, [])]
    if given and config.get(TAPS, given) != given:
        raise InputError(f"{TAPS}={config[TAPS]} contradicts {NESTED}.{TAPS}={nested[NESTED][TAPS]}; expected one of them")
    rest = {key: value for key, value in config.items() if key != NESTED}
    return rest | ({TAPS: given} if given else {})


def _check_maps(offsets: Tensor | None, known: Tensor | None, vocabulary: int) -> None:
    """Raises InputError for a d2t that maps drafted tokens to no token, or two to one, and for a t2d that names other tokens."""
    if offsets is None or offsets.ndim != 1 or offsets.is_floating_point() or offsets.is_complex():
        return  # refused by its shape or type
    tokens = torch.arange(len(offsets)) + offsets
    if not ((tokens >= 0) & (tokens < vocabulary)).all() or len(set(tokens.tolist())) < len(tokens):
        raise InputError(
            f"d2t maps to other tokens than the target's {vocabulary}, or several to one; expected offsets to distinct ids"
        )
    if known is None or known.shape != (vocabulary,) or known.dtype != torch.bool:
        return
    if not torch.equal(known.nonzero()[:, 0], tokens.sort().values):
        raise InputError("t2d contradicts d2t: expected true for exactly the tokens that d2t maps to")


class MidLayer(nn.Module):
    """A Llama layer whose attention reads a token embedding and a hidden state; the residual is the hidden state."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.self_attn = LlamaAttention(config, 0)
        for name in ("q_proj", "k_proj", "v_proj"):
            old = getattr(self.self_attn, name)
            setattr(self.self_attn, name, nn.Linear(2 * config.hidden_size, old.out_features, bias=old.bias is not None))
        self.mlp = LlamaMLP(config)  # type: ignore[no-untyped-call]
        self.hidden_norm, self.input_layernorm, self.post_attention_layernorm = (
            LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps) for _ in range(3)
        )

    def forward(self, embedded: Tensor, hidden: Tensor, position_embeddings: tuple[Tensor, Tensor], forward_pass: Any) -> Tensor:
        """(B, N, H) each -> (B, N, H)."""
        inputs = torch.cat([self.input_layernorm(embedded), self.hidden_norm(hidden)], dim=-1)
        hidden = hidden + self.self_attn(inputs, position_embeddings=position_embeddings, forward_pass=forward_pass)[0]
        return cast(Tensor, hidden + self.mlp(self.post_attention_layernorm(hidden)))


class Eagle3Network(DraftNetwork):
    """fc over three hidden states, one layer, a norm, and a head over a draft vocabulary; d2t: offsets to target ids."""

    files = ("pytorch_model.bin",)
    unused = ("midlayer.self_attn.rotary_emb",)
    writes_hidden = ("embed_tokens.weight", "fc.weight", "o_proj.weight", "down_proj.weight")
    hidden_vectors: Mapping[str, int] = {"fc.weight": 3, "q_proj.weight": 2, "k_proj.weight": 2, "v_proj.weight": 2}

    def __init__(self, config: Mapping[str, Any], shape: TargetShape) -> None:
        super().__init__(config, shape)
        self.draft_vocabulary: int = config.get("draft_vocab_size", shape.vocab_size)
        self.layer_config = build_layer_config(self.config, shape)
        hidden = self.layer_config.hidden_size
        self.fc = nn.Linear(3 * self.config.get("target_hidden_size", shape.hidden_size), hidden, bias=False)
        self.midlayer = MidLayer(self.layer_config)
        self.norm = LlamaRMSNorm(hidden, eps=self.layer_config.rms_norm_eps)
        self.lm_head = nn.Linear(hidden, self.draft_vocabulary, bias=False)
        if self.draft_vocabulary < shape.vocab_size:
            self.d2t = nn.Buffer(torch.zeros(self.draft_vocabulary, dtype=torch.long))
            self.t2d = nn.Buffer(torch.zeros(shape.vocab_size, dtype=torch.bool))
        if self.config.get("own_embeddings"):
            self.embed_tokens = nn.Embedding(shape.vocab_size, hidden)

    @property
    def taps(self) -> tuple[int, ...]:
        return tuple(self.config.get(TAPS) or _choose_taps(self.shape.num_hidden_layers))

    @classmethod
    def list_keys(cls, shape: TargetShape) -> Mapping[str, Rule]:
        layers = shape.num_hidden_layers
        return {
            **list_layer_keys(shape),
            "num_hidden_layers": Rule(
                f"1, or {layers} as in a copy of the target's", lambda value: is_whole(value) and value in (1, layers)
            ),
            "draft_vocab_size": require_whole(most=shape.vocab_size),
            "target_hidden_size": require_equal(shape.hidden_size, "the target's"),
            "own_embeddings": FLAG,
            TAPS: _require_taps(layers),
            NESTED: _require_nested_taps(layers - 1),
        }

    @classmethod
    def create_config(cls, shape: TargetShape) -> dict[str, Any]:
        taps = _choose_taps(shape.num_hidden_layers)
        llama = {"hidden_act": "silu", "rope_theta": 10000.0}
        return {**shape.get_layer_sizes(), **llama, "draft_vocab_size": shape.vocab_size, TAPS: taps}

    @classmethod
    def normalise_checkpoint(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Drop the vocabulary maps if the vocabularies are equal; note whether it has embeddings; taps in one spelling."""
        if config.get("draft_vocab_size", config["vocab_size"]) == config["vocab_size"]:
            tensors = {name: tensor for name, tensor in tensors.items() if name not in ("d2t", "t2d")}
        _check_maps(tensors.get("d2t"), tensors.get("t2d"), config["vocab_size"])
        defaults = {"rms_norm_eps": DEFAULT_EPS, "own_embeddings": "embed_tokens.weight" in tensors}
        return {**defaults, **_move_taps(config), "num_hidden_layers": 1}, tensors

    def attach_target(self, target: LanguageModel) -> None:
        hidden, target_hidden = self.layer_config.hidden_size, target.config.hidden_size
        shared = not self.config.get("own_embeddings")
        if shared and hidden != target_hidden:
            needed = "needs embed_tokens.weight in the checkpoint"
            raise InputError(f"eagle3: a hidden size of {hidden} {needed}: the target's embeddings have {target_hidden}")
        self._embed = target.embedding.forward if shared else self.embed_tokens.forward
        self.rotary = Rotary(self.layer_config, target.context + ROOM, self.fc.weight)

    def forward(self, hidden: Tensor, tokens: Tensor, positions: Tensor, forward_pass: Any) -> Tensor:
        """hidden (B, N, 3 H) of the target or (B, N, H) of the drafter, tokens and positions (B, N) -> (B, N, H)."""
        if hidden.shape[-1] == self.fc.in_features:
            hidden = self.fc(hidden)
        embedded = self._embed(tokens).to(hidden.dtype)
        return cast(Tensor, self.midlayer(embedded, hidden, self.rotary.get_cos_sin(positions), forward_pass))

    def list_layer_inputs(self, nodes: int) -> list[tuple[Tensor, ...]]:
        return [draw_layer_inputs(self, width, nodes) for width in (self.fc.in_features, self.layer_config.hidden_size)]

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """(..., H) -> (..., draft vocabulary)."""
        return cast(Tensor, self.lm_head(self.norm(hidden)))

    def to_target_tokens(self, tokens: Tensor) -> Tensor:
        """Map ids of the draft vocabulary, of any shape, to ids of the target's."""
        return tokens + self.d2t[tokens] if self.draft_vocabulary < self.shape.vocab_size else tokens

    def choose_vocabulary(self, tokens: Tensor) -> None:
        self.d2t.copy_(tokens - torch.arange(len(tokens), device=tokens.device))
        self.t2d[tokens] = True

    def compute_loss(self, lesson: Lesson) -> LessonLoss:
        """Training-time test (section 3.2): in each of ROUNDS rounds the network reads its own output, one token further."""
        positions = torch.arange(lesson.ids.shape[1], device=lesson.ids.device)[None]
        hidden, rounds, losses, right = lesson.hidden, TrainingPass(), [], []
        teacher, known = self._compute_teacher(lesson)
        places = lesson.locate_answers()
        for i in range(ROUNDS):
            hidden = self(hidden, lesson.ids.roll(-1 - i, dims=1), positions + i, rounds)
            mask, tokens = lesson.select_ahead(2 + i)
            taught = places >= 2 + i
            learned = known[taught]
            logits = self.compute_logits(hidden[mask])
            losses.append(DECAY**i * divergence(logits[learned], teacher[taught][learned]))
            right.append(mean(self.to_target_tokens(logits.argmax(-1)) == tokens))
            rounds.advance_round()
        return LessonLoss(torch.stack(losses).sum(), right)

    def _compute_teacher(self, lesson: Lesson) -> tuple[Tensor, Tensor]:
        """Return the target's logits over the draft vocabulary for every answer token but one at place 0, and whether its best
        token is among them: only there is something learned.
        """
        mask, _ = lesson.select_ahead(1)
        logits = lesson.compute_teacher(mask, 1)
        if self.draft_vocabulary == self.shape.vocab_size:
            return logits, torch.ones(len(logits), dtype=torch.bool, device=logits.device)
        return logits[:, self.t2d], self.t2d[logits.argmax(-1)]


class Eagle3(Eagle2):
    """EAGLE-2's dynamic tree over EAGLE-3's network."""

    network_class = Eagle3Network
