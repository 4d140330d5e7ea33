"""EAGLE-3 (Li et al. 2025): layers over hidden states from several depths of the target, its own head, EAGLE-2's tree.

Also as later published: EAGLE-3.1 (norms before fc; the next level reads the normalised output), several layers, the files of
SpecForge, DeepSpec and speculators.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm

from methods.eagle import ROOM, Eagle2
from specbench.decoding.language_model import LanguageModel
from specbench.drafters.config_keys import ANY, FLAG, MOST, Rule, require_equal, require_whole
from specbench.drafters.draft_vocabulary import MappedNetwork, check_maps, read_teacher
from specbench.drafters.layers import Rotary
from specbench.drafters.lesson import Lesson, LessonLoss, TrainingPass, divergence, mean
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
from specbench.drafters.taps import are_taps, choose_taps, require_taps
from specbench.errors import InputError

ROUNDS = 7  # of the training-time test (section 3.2)
DECAY = 0.8  # a round's weight in the loss, relative to the round before
COUNTS = range(3, 4)  # hidden states that it reads
TAPS = "eagle_aux_hidden_state_layer_ids"  # in config.json files of later runtimes; absent in the authors'
OUTPUTS = "target_layer_ids"  # in DeepSpec's: any number of layers, by their output
NESTED = "eagle_config"  # of SpecForge and SGLang: there, TAPS counts from a layer's output


def _require_nested_taps(layers: int) -> Rule:
    allowed = {TAPS: lambda value: are_taps(value, 0, layers - 1, COUNTS), "use_aux_hidden_state": lambda value: value is True}
    return Rule(
        f"{{{TAPS}: three different layers from 0 to {layers - 1}}}",
        lambda value: isinstance(value, dict) and all(key in allowed and allowed[key](value[key]) for key in value),
    )


def _move_taps(config: dict[str, Any]) -> dict[str, Any]:
    """Return the config with the taps of `eagle_config`, which name layers by their output, as numbers of the layers after."""
    nested = config.get(NESTED, {})
    given = [tap + 1 for tap in nested.get(TAPS, [])]
    if given and config.get(TAPS, given) != given:
        raise InputError(f"{TAPS}={config[TAPS]} contradicts {NESTED}.{TAPS}={nested[TAPS]}; expected one of them")
    if OUTPUTS in config and (given or TAPS in config):
        raise InputError(f"{OUTPUTS}={config[OUTPUTS]} and {TAPS}: expected one of them")
    rest = {key: value for key, value in config.items() if key != NESTED}
    return rest | ({TAPS: given} if given else {})


class MidLayer(nn.Module):
    """A decoder layer whose attention reads a token embedding and a hidden state; the residual is the hidden state.

    layer: an ordinary one. normalised_residual: the residual is what the attention reads of the hidden state.
    """

    def __init__(self, config: Any, layer: Any, normalised_residual: bool) -> None:
        super().__init__()
        self.normalised_residual = normalised_residual
        self.self_attn = layer.self_attn
        for name in ("q_proj", "k_proj", "v_proj"):
            old = getattr(self.self_attn, name)
            setattr(self.self_attn, name, nn.Linear(2 * config.hidden_size, old.out_features, bias=old.bias is not None))
        self.mlp = layer.mlp
        self.hidden_norm, self.input_layernorm, self.post_attention_layernorm = (
            LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps) for _ in range(3)
        )

    def forward(self, embedded: Tensor, hidden: Tensor, position_embeddings: tuple[Tensor, Tensor], forward_pass: Any) -> Tensor:
        """(B, N, H) each -> (B, N, H)."""
        normalised = self.hidden_norm(hidden)
        inputs = torch.cat([self.input_layernorm(embedded), normalised], dim=-1)
        residual = normalised if self.normalised_residual else hidden
        attended = self.self_attn(
            inputs, position_embeddings=position_embeddings, attention_mask=None, forward_pass=forward_pass
        )[0]
        hidden = residual + attended
        return cast(Tensor, hidden + self.mlp(self.post_attention_layernorm(hidden)))


class Eagle3Network(MappedNetwork):
    """Norms and fc over hidden states, as a rule three, one layer or more, a norm, and a head, its own or the target's."""

    files = ("pytorch_model.bin",)
    speculators = "eagle3"
    unused = ("midlayer.self_attn.rotary_emb", "verifier_norm", "verifier_lm_head")
    writes_hidden: ClassVar[tuple[str, ...]] = ("embed_tokens.weight", "fc.weight", "o_proj.weight", "down_proj.weight")

    def __init__(self, config: Mapping[str, Any], shape: TargetShape) -> None:
        super().__init__(config, shape)
        self.layer_config = build_layer_config(self.config, shape, self.config.get("qk_norms", False))
        hidden, eps = self.layer_config.hidden_size, self.layer_config.rms_norm_eps
        width, count = self.config.get("target_hidden_size", shape.hidden_size), len(self.taps)
        self.hidden_vectors = dict.fromkeys(("fc.weight", "input_norm.weight", "mask.weight"), count)
        self.hidden_vectors |= {f"midlayer.self_attn.{name}_proj.weight": 2 for name in "qkv"}
        if self.config.get("norm_before_fc"):
            self.input_norm = LlamaRMSNorm(count * width, eps=eps)
        if self.config.get("fc_norm"):
            self.fc_norm = nn.ModuleList(LlamaRMSNorm(width, eps=eps) for _ in range(count))
        if count * width == hidden:
            raise InputError(
                f"{count} hidden states of {width} dimensions are together as wide as one of the drafter's: not supported"
            )
        self.fc = nn.Linear(count * width, hidden, bias=False)
        self.midlayer = MidLayer(self.layer_config, self._build_layer(0), self.config.get("norm_before_residual", False))
        further = range(1, self.config.get("num_hidden_layers", 1))
        self.layers = nn.ModuleDict({str(index): self._build_layer(index) for index in further})
        self.norm = LlamaRMSNorm(hidden, eps=eps)
        if self.config.get("own_head", True):
            self.lm_head = nn.Linear(hidden, self.draft_vocabulary, bias=False)
        if self.config.get("own_embeddings"):
            self.embed_tokens = nn.Embedding(shape.vocab_size, hidden)

    def _build_layer(self, index: int) -> nn.Module:
        if self.config.get("qk_norms"):
            return build_qwen3_layer(self.config, self.layer_config, index)
        return LlamaDecoderLayer(self.layer_config, index)

    @property
    def taps(self) -> tuple[int, ...]:
        if layers := self.config.get(OUTPUTS):
            return tuple(layer + 1 for layer in layers)
        return tuple(self.config.get(TAPS) or choose_taps(self.shape.num_hidden_layers))

    @classmethod
    def list_keys(cls, shape: TargetShape) -> Mapping[str, Rule]:
        layers = shape.num_hidden_layers
        own = ("own_embeddings", "own_head", "qk_norms")  # set by what the weights' file holds
        flags = (*own, "norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")
        return {
            **list_layer_keys(shape),
            "num_hidden_layers": require_whole(most=max(MOST, layers)),
            "draft_vocab_size": require_whole(most=shape.vocab_size),
            "target_hidden_size": require_equal(shape.hidden_size, "the target's"),
            TAPS: require_taps(0, layers, COUNTS),
            NESTED: _require_nested_taps(layers - 1),
            OUTPUTS: require_taps(-1, layers - 1, range(1, MOST), "layers"),
            "num_target_layers": require_equal(layers, "the target's"),
            "draft_num_hidden_layers": require_equal(1, "the only number supported"),
            **dict.fromkeys(("ttt_length", "step_loss_decay"), ANY),  # of DeepSpec's training
            **dict.fromkeys(flags, FLAG),
        }

    @classmethod
    def create_config(cls, shape: TargetShape) -> dict[str, Any]:
        taps = choose_taps(shape.num_hidden_layers)
        llama = {"hidden_act": "silu", "rope_theta": 10000.0}
        return {**shape.get_layer_sizes(), **llama, "draft_vocab_size": shape.vocab_size, TAPS: taps}

    @classmethod
    def normalise_checkpoint(cls, config: dict[str, Any], tensors: dict[str, Tensor], shape: TargetShape) -> Checkpoint:
        """Drop the vocabulary maps if the vocabularies are equal, note what else the checkpoint holds, unify taps and names."""
        if config.get("norm_before_fc") and config.get("fc_norm"):
            raise InputError("norm_before_fc=true and fc_norm=true: expected one of them")
        named = {re.sub(r"^layers\.0\.", "midlayer.", name): tensor for name, tensor in tensors.items()}
        named = check_maps(config, named)
        found, said = max(1, count_layers(named)), config.get("num_hidden_layers", 1)
        if said != found and not (found == 1 and said == shape.num_hidden_layers):
            copied = f", or {shape.num_hidden_layers} as in a copy of the target's" if found == 1 else ""
            raise InputError(f"num_hidden_layers={said}: expected {found}, as in the weights{copied}")
        own = {"own_embeddings": "embed_tokens.weight" in named, "own_head": "lm_head.weight" in named}
        own["qk_norms"] = "midlayer.self_attn.q_norm.weight" in named
        return {"rms_norm_eps": DEFAULT_EPS, **own, **_move_taps(config), "num_hidden_layers": found}, named

    def attach_target(self, target: LanguageModel) -> None:
        hidden, target_hidden = self.layer_config.hidden_size, target.config.hidden_size
        shared = not self.config.get("own_embeddings")
        if shared and hidden != target_hidden:
            needed = "needs embed_tokens.weight in the checkpoint"
            raise InputError(f"eagle3: a hidden size of {hidden} {needed}: the target's embeddings have {target_hidden}")
        self._embed = target.embedding.forward if shared else self.embed_tokens.forward
        self._head = self.lm_head.forward if self.config.get("own_head", True) else self._borrow_head(target)
        self.rotary = Rotary(self.layer_config, target.context + ROOM, self.fc.weight)

    def _borrow_head(self, target: LanguageModel) -> Callable[[Tensor], Tensor]:
        if self.maps or self.layer_config.hidden_size != target.config.hidden_size:
            raise InputError("lm_head.weight is missing in the checkpoint; the target's head has a different size")
        return lambda hidden: target.head(hidden.to(target.dtype))

    def forward(self, hidden: Tensor, tokens: Tensor, positions: Tensor, forward_pass: Any) -> Tensor:
        """hidden (B, N, taps * H) of the target or (B, N, H) of the drafter, tokens and positions (B, N) -> (B, N, H)."""
        if hidden.shape[-1] == self.fc.in_features:
            hidden = self._fuse(hidden)
        rotary = self.rotary.get_cos_sin(positions)
        hidden = self.midlayer(self._embed(tokens).to(hidden.dtype), hidden, rotary, forward_pass)
        for layer in self.layers.values():
            hidden = layer(hidden, position_embeddings=rotary, forward_pass=forward_pass)
        return cast(Tensor, self.norm(hidden) if self.config.get("norm_output") else hidden)

    def _fuse(self, hidden: Tensor) -> Tensor:
        """(B, N, taps * H) -> (B, N, H)."""
        if self.config.get("norm_before_fc"):
            hidden = self.input_norm(hidden)
        if self.config.get("fc_norm"):
            hidden = torch.cat(
                [norm(part) for norm, part in zip(self.fc_norm, hidden.chunk(len(self.taps), -1), strict=True)], dim=-1
            )
        return cast(Tensor, self.fc(hidden))

    def list_layer_inputs(self, nodes: int) -> list[tuple[Tensor, ...]]:
        return [draw_layer_inputs(self, width, nodes) for width in (self.fc.in_features, self.layer_config.hidden_size)]

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """(..., H) -> (..., draft vocabulary)."""
        return self._head(hidden if self.config.get("norm_output") else self.norm(hidden))

    def compute_loss(self, lesson: Lesson) -> LessonLoss:
        """Training-time test (section 3.2): in each of ROUNDS rounds the network reads its own output, one token further."""
        positions = torch.arange(lesson.ids.shape[1], device=lesson.ids.device)[None]
        hidden, rounds, losses, right = lesson.hidden, TrainingPass(), [], []
        teacher, known = read_teacher(self, lesson)
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


class Eagle3(Eagle2):
    """EAGLE-2's dynamic tree over EAGLE-3's network."""

    network_class = Eagle3Network
