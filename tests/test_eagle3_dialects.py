"""EAGLE-3 as it is published since: every dialect drafts as a plain computation from its tensors says, or is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention, silu

from methods.eagle3 import TAPS, Eagle3, Eagle3Network
from specbench.decoding.language_model import LanguageModel
from specbench.drafters.lesson import TrainingPass
from specbench.drafters.network_drafter import load_network
from specbench.errors import InputError
from tests.test_trained_drafters import decoded
from tests.tiny import tiny_model

Config = dict[str, Any]
Tensors = dict[str, Tensor]
HIDDEN, HEADS, WIDTH, GROUPS, INNER, VOCABULARY, EPS = 32, 4, 8, 2, 48, 128, 1e-5
SIZES: Config = {"hidden_size": HIDDEN, "intermediate_size": INNER, "num_attention_heads": HEADS, "num_key_value_heads": GROUPS}
SIZES |= {"head_dim": WIDTH, "vocab_size": VOCABULARY, "rms_norm_eps": EPS}


def target() -> LanguageModel:
    return LanguageModel(tiny_model("llama", layers=4))


def draw_tensors(config: Config, first: str = "midlayer", head: bool = True, qk_norms: bool = False) -> Tensors:
    """Random weights of a drafter, under the published names."""
    draw = torch.Generator().manual_seed(5)

    def weight(*shape: int) -> Tensor:
        return 0.3 * torch.randn(*shape, generator=draw, dtype=torch.float64) + (1.0 if len(shape) == 1 else 0.0)

    count = len(config.get("target_layer_ids", TAPPED))
    made = {"fc.weight": weight(HIDDEN, count * HIDDEN), "norm.weight": weight(HIDDEN)}
    if head:
        made["lm_head.weight"] = weight(VOCABULARY, HIDDEN)
    if config.get("norm_before_fc"):
        made["input_norm.weight"] = weight(3 * HIDDEN)
    if config.get("fc_norm"):
        made |= {f"fc_norm.{place}.weight": weight(HIDDEN) for place in range(3)}
    for index in range(config.get("num_hidden_layers", 1)):
        name, read = (first, 2 * HIDDEN) if index == 0 else (f"layers.{index}", HIDDEN)
        norms = ["input_layernorm", "post_attention_layernorm", *(["hidden_norm"] if index == 0 else [])]
        made |= {f"{name}.{norm}.weight": weight(HIDDEN) for norm in norms}
        made |= {
            f"{name}.self_attn.{part}_proj.weight": weight(n * WIDTH, read) for part, n in zip("qkv", (4, 2, 2), strict=True)
        }
        made[f"{name}.self_attn.o_proj.weight"] = weight(HIDDEN, HEADS * WIDTH)
        made |= {f"{name}.mlp.{part}_proj.weight": weight(INNER, HIDDEN) for part in ("gate", "up")}
        made[f"{name}.mlp.down_proj.weight"] = weight(HIDDEN, INNER)
        if qk_norms:
            made |= {f"{name}.self_attn.{part}_norm.weight": weight(WIDTH) for part in "qk"}
    return made


def norm(hidden: Tensor, weight: Tensor) -> Tensor:
    return hidden / (hidden.pow(2).mean(-1, keepdim=True) + EPS).sqrt() * weight


def turn(heads: Tensor, theta: float) -> Tensor:
    """(heads, T, D), rotated by position."""
    positions = torch.arange(heads.shape[1], dtype=torch.float64)[:, None]
    angles = (positions * theta ** (-torch.arange(0, WIDTH, 2) / WIDTH)).repeat(1, 2)
    first, second = heads.chunk(2, dim=-1)
    return heads * angles.cos() + torch.cat([-second, first], dim=-1) * angles.sin()


def attend(inputs: Tensor, name: str, tensors: Tensors, theta: float) -> Tensor:
    query, key, value = (
        linear(inputs, tensors[f"{name}.self_attn.{part}_proj.weight"]).view(len(inputs), -1, WIDTH).transpose(0, 1)
        for part in "qkv"
    )
    if f"{name}.self_attn.q_norm.weight" in tensors:
        query, key = (norm(x, tensors[f"{name}.self_attn.{part}_norm.weight"]) for x, part in ((query, "q"), (key, "k")))
    key, value = (x.repeat_interleave(HEADS // GROUPS, dim=0) for x in (turn(key, theta), value))
    out = scaled_dot_product_attention(turn(query, theta), key, value, is_causal=True)
    return linear(out.transpose(0, 1).flatten(1), tensors[f"{name}.self_attn.o_proj.weight"])


def add_mlp(hidden: Tensor, name: str, tensors: Tensors) -> Tensor:
    read = norm(hidden, tensors[f"{name}.post_attention_layernorm.weight"])
    gate, up = (linear(read, tensors[f"{name}.mlp.{part}_proj.weight"]) for part in ("gate", "up"))
    return hidden + linear(silu(gate) * up, tensors[f"{name}.mlp.down_proj.weight"])


def compute(config: Config, tensors: Tensors, first: str, hidden: Tensor, embedded: Tensor) -> tuple[Tensor, Tensor]:
    """What the next level reads and what the head reads, (T, H) each, of a text's three hidden states and embeddings."""
    theta = config.get("rope_theta", 10000.0)
    if config.get("norm_before_fc"):
        hidden = norm(hidden, tensors["input_norm.weight"])
    if config.get("fc_norm"):
        hidden = torch.cat([norm(x, tensors[f"fc_norm.{i}.weight"]) for i, x in enumerate(hidden.chunk(3, dim=-1))], dim=-1)
    hidden = linear(hidden, tensors["fc.weight"])
    normalised = norm(hidden, tensors[f"{first}.hidden_norm.weight"])
    inputs = torch.cat([norm(embedded, tensors[f"{first}.input_layernorm.weight"]), normalised], dim=-1)
    residual = normalised if config.get("norm_before_residual") else hidden
    hidden = add_mlp(residual + attend(inputs, first, tensors, theta), first, tensors)
    for index in range(1, config.get("num_hidden_layers", 1)):
        name = f"layers.{index}"
        hidden = hidden + attend(norm(hidden, tensors[f"{name}.input_layernorm.weight"]), name, tensors, theta)
        hidden = add_mlp(hidden, name, tensors)
    out = norm(hidden, tensors["norm.weight"])
    return (out if config.get("norm_output") else hidden), out


def write(folder: Path, config: Config, tensors: Tensors) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return str(folder)


def nest(config: Config, kind: str = "llama") -> Config:
    """The same config as speculators writes it."""
    layer_keys = (*SIZES, "num_hidden_layers", "rope_theta")
    layers = {"num_hidden_layers": 1, **{key: value for key, value in config.items() if key in layer_keys}}
    layers |= {"model_type": kind, "attention_bias": False}
    others = {key: value for key, value in config.items() if key not in layer_keys}
    about = {"algorithm": "eagle3", "verifier": {"name_or_path": "x"}, "proposal_methods": [{"speculative_tokens": 3}]}
    more: Config = {"architectures": ["Eagle3Speculator"], "auto_map": {"": "eagle3.Eagle3SpeculatorConfig"}}
    more |= {
        "target_hidden_size": None,
        "has_no_defaults_at_init": False,
        "speculators_version": "0.1.0.dev42",
        "torch_dtype": "float32",
    }
    return {**others, **more, "speculators_model_type": "eagle3", "speculators_config": about, "transformer_layer_config": layers}


TAPPED = [0, 2, 3]
CLASSIC: Config = {**SIZES, "draft_vocab_size": VOCABULARY, TAPS: TAPPED}
DEEPSPEC: Config = {"target_layer_ids": [0, 1, 2, 3], "num_target_layers": 4, "draft_num_hidden_layers": 1, "ttt_length": 7}
DIALECTS: dict[str, tuple[Config, dict[str, Any]]] = {  # changes of the config, and what its file holds
    "authors": ({}, {}),
    "theta": ({"rope_theta": 1e6}, {}),
    "3.1": ({"fc_norm": True, "norm_output": True}, {}),
    "gpt-oss": ({"norm_before_fc": True}, {}),
    "residual": ({"norm_before_residual": True}, {}),
    "layers": ({"num_hidden_layers": 3}, {}),
    "layers-3.1": ({"num_hidden_layers": 2, "norm_output": True, "norm_before_residual": True}, {"first": "layers.0"}),
    "no-head": ({}, {"head": False}),
    "DeepSpec": ({TAPS: None, **DEEPSPEC}, {"qk_norms": True, "first": "layers.0"}),
    "qwen3": ({"num_hidden_layers": 2, "rope_theta": 1e5}, {"qk_norms": True, "first": "layers.0"}),
}


@pytest.mark.parametrize("nested", [False, True], ids=["flat", "speculators"])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_it_computes_what_its_tensors_and_config_say(dialect: str, nested: bool, tmp_path: Path) -> None:
    changes, file = DIALECTS[dialect]
    config, model = {**CLASSIC, **changes}, target()
    tensors, first = draw_tensors(config, **file), file.get("first", "midlayer")
    written = nest(config, "qwen3" if file.get("qk_norms") else "llama") if nested else config
    network: Any = load_network(Eagle3Network, write(tmp_path, written, tensors), model)
    assert network.taps == tuple([layer + 1 for layer in config.get("target_layer_ids", [])] or TAPPED)
    draw = torch.Generator().manual_seed(1)
    hidden = torch.randn(1, 11, len(network.taps) * HIDDEN, generator=draw, dtype=torch.float64)
    tokens = torch.randint(VOCABULARY, (1, 11), generator=draw)
    embedded = model.embedding(tokens)[0].detach()
    with torch.no_grad():
        found = network(hidden, tokens, torch.arange(11)[None], TrainingPass())
        following, read = compute(config, tensors, first, hidden[0], embedded)
        head = tensors.get("lm_head.weight", model.head.get_parameter("weight"))
        assert torch.allclose(found[0], following, atol=1e-4, rtol=1e-5)
        assert torch.allclose(network.compute_logits(found)[0], linear(read, head), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("dialect", ["3.1", "layers", "layers-3.1", "qwen3", "DeepSpec"])
def test_it_drafts_and_the_text_is_the_targets(dialect: str, tmp_path: Path) -> None:
    """With KV of several layers kept, and dropped after each tree."""
    changes, file = DIALECTS[dialect]
    config, model = {**CLASSIC, **changes}, target()
    drafter = Eagle3(write(tmp_path, config, draw_tensors(config, **file)), 12, 3, 4, "auto")
    outs, plain = decoded(model, drafter), decoded(model, Eagle3("random", 12, 3, 4, "auto"))
    assert [out.output_ids for out in outs] == [out.output_ids for out in plain]
    assert all(sum(out.drafted) for out in outs)


REFUSED: list[tuple[Config, dict[str, Any], str]] = [
    ({"fc_norm": True, "norm_before_fc": True}, {}, "norm_before_fc=true and fc_norm=true: expected one of them"),
    ({"num_hidden_layers": 3}, {"kept": 2}, "num_hidden_layers=3: expected 2, as in the weights$"),
    ({"draft_vocab_size": 64}, {"head": False}, "missing: d2t"),
    ({"target_layer_ids": [0, 1]}, {}, "target_layer_ids=.0, 1. and eagle_aux_hidden_state_layer_ids: expected one of them"),
    ({"draft_num_hidden_layers": 2}, {}, "draft_num_hidden_layers=2: expected 1, the only number supported"),
    ({"mask_token_id": 3}, {}, '"mask_token_id": no such key is supported'),
]


@pytest.mark.parametrize(("changes", "file", "said"), REFUSED)
def test_what_does_not_fit_is_refused_by_name(changes: Config, file: dict[str, Any], said: str, tmp_path: Path) -> None:
    config = {**CLASSIC, **changes}
    held = config | {"num_hidden_layers": file.pop("kept", config.get("num_hidden_layers", 1))}
    with pytest.raises(InputError, match=said):
        load_network(Eagle3Network, write(tmp_path, config, draw_tensors(held, **file)), target())


NESTED: list[tuple[Config, str]] = [
    ({"speculators_model_type": "dflash"}, "speculators_model_type=.dflash.: expected eagle3"),
    ({"transformer_layer_config": []}, "transformer_layer_config=..: expected a mapping"),
    ({"transformer_layer_config": {"model_type": "gpt_oss"}}, "transformer_layer_config.model_type=.gpt_oss.: expected llama"),
    ({"hidden_size": 64}, "hidden_size=64 contradicts transformer_layer_config.hidden_size=32"),
    ({"zzz": 1}, '"zzz": no such key is supported'),
]


@pytest.mark.parametrize(("changes", "said"), NESTED)
def test_a_config_of_speculators_that_does_not_fit(changes: Config, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        load_network(Eagle3Network, write(tmp_path, nest(CLASSIC) | changes, draw_tensors(CLASSIC)), target())


def test_a_size_that_speculators_leaves_out_is_transformers_default(tmp_path: Path) -> None:
    config = nest(CLASSIC)
    del config["transformer_layer_config"]["hidden_size"]
    with pytest.raises(InputError, match=r"misshapen: fc.weight is \(32, 96\), expected \(4096, 96\)"):
        load_network(Eagle3Network, write(tmp_path, config, draw_tensors(CLASSIC)), target())
