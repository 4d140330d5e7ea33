"""config.json of trained drafters: every key is honoured, without effect, or refused by name."""

from __future__ import annotations

import json
import shutil
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

from methods.eagle import EagleNetwork
from methods.eagle3 import Eagle3Network
from methods.hydra_heads import HydraNetwork
from methods.medusa import MedusaHeads
from specbench import ROOT
from specbench.decoding.autoregressive import Autoregressive
from specbench.decoding.language_model import LanguageModel
from specbench.drafters.checkpoints import write_checkpoint
from specbench.drafters.network import DraftNetwork
from specbench.drafters.network_drafter import load_network
from specbench.errors import InputError
from specbench.models.load import load_model
from tests.test_trained_drafters import decoded, drafter_of

ZOO = ROOT / "specbench" / "zoo"
NAMES: dict[str, type[DraftNetwork]] = {
    "medusa": MedusaHeads,
    "hydra_heads": HydraNetwork,
    "eagle": EagleNetwork,
    "eagle3": Eagle3Network,
}
TAPS = "eagle_aux_hidden_state_layer_ids"


@lru_cache
def mini() -> LanguageModel:
    return load_model(str(ZOO / "target"), dtype="float32", device="cpu")


def changed(name: str, folder: Path, remove: tuple[str, ...] = (), **changes: Any) -> str:
    """A copy of an embedded drafter with another config.json."""
    copy = Path(shutil.copytree(ZOO / name, folder / "copy"))
    config = json.loads((copy / "config.json").read_text())
    kept = {key: value for key, value in config.items() if key not in remove}
    (copy / "config.json").write_text(json.dumps(kept | changes))
    return str(copy)


def load(name: str, folder: Path, remove: tuple[str, ...] = (), **changes: Any) -> Any:
    return load_network(NAMES[name], changed(name, folder, remove, **changes), mini())


REFUSED: list[tuple[str, str, Any, str]] = [  # drafter, key, value, what is said
    ("eagle", "norm_output", True, "norm_output=true is not supported; expected false"),
    ("eagle3", "norm_output", 1, "norm_output=1: expected true or false"),
    ("eagle3", "norm_before_fc", True, "missing: input_norm.weight, expected .768,."),
    ("eagle3", "fc_norm", True, "missing: fc_norm.0.weight, expected .256,."),
    ("eagle3", "num_hidden_layers", 2, "num_hidden_layers=2: expected 1, as in the weights, or 8 as in a copy of the target's"),
    ("eagle3", "layer_types", ["sliding_attention"], 'layer_types=.*: expected a list of "full_attention"'),
    ("eagle3", "speculators_model_type", "dflash", "speculators_model_type=.dflash.: expected eagle3 for this method"),
    ("medusa", "speculators_model_type", "eagle3", "speculators_model_type=.eagle3.: expected none for this method"),
    ("eagle", "num_hidden_layers", 2, "num_hidden_layers=2: expected 1, the only number supported"),
    ("eagle3", "attention_bias", True, "attention_bias=true is not supported; expected false"),
    ("eagle", "mlp_bias", True, "mlp_bias=true is not supported"),
    ("eagle3", "tie_word_embeddings", True, "tie_word_embeddings=true is not supported"),
    ("eagle3", "sliding_window", 512, "sliding_window=512 is not supported; expected null"),
    ("eagle3", "use_sliding_window", True, "use_sliding_window=true is not supported"),
    ("eagle3", "partial_rotary_factor", 0.5, "partial_rotary_factor=0.5 is not supported; expected 1.0"),
    ("eagle3", "hidden_act", "evil", "hidden_act=.evil.: expected "),
    ("eagle", "hidden_act", 3, "hidden_act=3: expected "),
    ("eagle3", "vocab_size", 1000, "vocab_size=1000: expected 1024, the target's"),
    ("eagle", "vocab_size", 2048, "vocab_size=2048: expected 1024"),
    ("eagle3", "draft_vocab_size", 2000, "draft_vocab_size=2000: expected a whole number from 1 to 1024"),
    ("eagle3", "draft_vocab_size", 512, "misshapen: lm_head.weight is .1024, 256., expected .512, 256."),
    ("eagle3", "target_hidden_size", 128, "target_hidden_size=128: expected 256, the target's"),
    ("eagle", "hidden_size", 128, "hidden_size=128: expected 256, the target's"),
    ("eagle3", "hidden_size", 128, "misshapen"),
    ("eagle3", "head_dim", 63, "head_dim=63: expected an even number"),
    ("eagle3", "head_dim", 32, "misshapen"),
    ("eagle", "num_attention_heads", 0, "num_attention_heads=0: expected a whole number from 1"),
    ("eagle", "num_attention_heads", "x", "num_attention_heads=.x.: expected a whole number"),
    ("eagle3", "num_attention_heads", -4, "num_attention_heads=-4: expected"),
    ("eagle3", "num_attention_heads", True, "num_attention_heads=true: expected"),
    ("eagle3", "num_key_value_heads", 3, "num_key_value_heads=3: expected a divisor of num_attention_heads=4"),
    ("eagle3", "intermediate_size", 1 << 70, "intermediate_size=.*: expected a whole number"),
    ("eagle3", "rms_norm_eps", "1e-5", "rms_norm_eps=.1e-5.: expected a positive number"),
    ("eagle3", "rms_norm_eps", float("nan"), "config.json: NaN is not a number"),
    ("eagle3", "rope_theta", -1, "rope_theta=-1: expected a positive number"),
    ("eagle3", "rope_theta", 1e-300, "its angles are not finite"),
    ("eagle3", "rope_scaling", {"type": "mrope", "mrope_section": [1]}, "rope_scaling.rope_type=.mrope.: expected default"),
    ("eagle3", "rope_scaling", {"type": "dynamic", "factor": 2}, "rope_type=.dynamic.: expected default"),
    ("eagle3", "rope_scaling", {"rope_type": "linear"}, "rope_scaling.factor is missing; expected a positive number"),
    ("eagle3", "rope_scaling", {"rope_type": "linear", "factor": 2, "q": 1}, "rope_scaling..q.: no such key is supported"),
    ("eagle3", "rope_scaling", "linear", "rope_scaling=.linear.: expected a mapping"),
    ("eagle3", "rope_parameters", {"rope_theta": 1e6}, "rope_theta=1000000.0 contradicts rope_theta=10000.0"),
    ("eagle3", TAPS, [2, 4, 50], "=.2, 4, 50.: expected three different whole numbers from 0 to 8"),
    ("eagle3", TAPS, [-1, 4, 5], "expected three different whole numbers from 0 to 8"),
    ("eagle3", TAPS, [2, 4, 4], "expected three different whole numbers"),
    ("eagle3", TAPS, [2, 4.0, 5], "expected three different whole numbers"),
    ("eagle3", TAPS, [2, 4], "expected three different whole numbers"),
    ("eagle3", TAPS, [2, True, 5], "expected three different whole numbers"),
    ("eagle3", "eagle_config", {TAPS: [1, 3, 5]}, "contradicts eagle_config"),
    ("eagle3", "eagle_config", {TAPS: [1, 3, 7]}, "eagle_config=.*: expected .*three different layers from 0 to 6"),
    ("eagle3", "eagle_config", {"use_aux_hidden_state": False}, "eagle_config=.*: expected "),
    ("eagle3", "transformer_layer_config", {}, "transformer_layer_config.: no such key is supported"),
    ("eagle3", "zzz", 1, '"zzz": no such key is supported .its value: 1.'),
    ("eagle3", "zzz", None, '"zzz": no such key is supported .its value: null.'),
    ("eagle3", "rope_thetta", 1, "the nearest is rope_theta"),
    ("medusa", "medusa_num_heads", 0, "medusa_num_heads=0: expected a whole number from 1 to 64"),
    ("medusa", "medusa_num_heads", "x", "medusa_num_heads=.x.: expected"),
    ("medusa", "medusa_num_layers", 0, "medusa_num_layers=0: expected"),
    ("medusa", "medusa_num_layers", 2, "missing: 0.1.linear.bias"),
    ("medusa", "medusa_num_layers", 1 << 40, "medusa_num_layers=.*: expected"),
    ("medusa", "hidden_size", 128, "hidden_size=128: expected 256, the target's"),
    ("medusa", "zzz", 1, "no such key is supported"),
    ("hydra_heads", "hydra_num_heads", 0, "hydra_num_heads=0: expected a whole number from 1 to 64"),
    ("hydra_heads", "hydra_num_heads", -3, "hydra_num_heads=-3: expected"),
    ("hydra_heads", "hydra_num_heads", 5, "missing: hydra_lm_head.4"),
    ("hydra_heads", "hydra_num_layers", True, "hydra_num_layers=true: expected"),
    ("hydra_heads", "hydra_head_arch", "eagle-attn", "hydra_head_arch=.eagle-attn.: expected"),
    ("hydra_heads", "grounded_heads", False, "grounded_heads=false: expected true"),
    ("hydra_heads", "hidden_state_offset", 9, "hidden_state_offset=9: expected a whole number from 0 to 8"),
    ("hydra_heads", "rope_theta", 1e6, "rope_theta.: no such key is supported"),
]


@pytest.mark.parametrize(("name", "key", "value", "said"), REFUSED)
def test_what_is_not_honoured_is_refused_by_name(name: str, key: str, value: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said) as error:
        load(name, tmp_path, **{key: value})
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


@pytest.mark.parametrize(
    ("name", "key"),
    [
        *[("eagle3", key) for key in ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")],
        *[("hydra_heads", key) for key in ("hydra_head_arch", "hydra_num_heads")],
    ],
)
def test_a_key_that_must_be_there(name: str, key: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{key} is missing; expected"):
        load(name, tmp_path, remove=(key,))


@pytest.mark.parametrize(
    "spelt",
    [
        {"rope_theta": 1e6},
        {"rope_theta": 1e6, "rope_scaling": None},
        {"rope_parameters": {"rope_theta": 1e6}},
        {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}},
        {"rope_theta": 1e6, "rope_parameters": {"rope_theta": 1e6}},
        {"rope_theta": 1e6, "rope_scaling": {"type": "default"}},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["eagle", "eagle3"])
def test_a_theta_in_every_spelling_turns_by_it(name: str, spelt: dict[str, Any], tmp_path: Path) -> None:
    rotary = load(name, tmp_path, remove=("rope_theta",), **spelt).rotary
    angles = 7 * 1e6 ** (-torch.arange(0, 64, 2, dtype=torch.float64) / 64)  # at position 7
    assert torch.allclose(rotary.cos[7, :32].double(), angles.cos(), atol=1e-5)


SCALINGS = [
    {"type": "linear", "factor": 4.0},
    {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
]


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda scaling: scaling.get("rope_type", "linear"))
def test_scaled_frequencies_are_those_of_transformers(scaling: dict[str, Any], tmp_path: Path) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    settings = {"rope_theta": 5e4, **scaling, "rope_type": scaling.get("rope_type", "linear")}
    config = LlamaConfig(hidden_size=256, num_attention_heads=4, max_position_embeddings=8192, rope_parameters=settings)
    expected = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(300)[None])
    for spelling in ("rope_scaling", "rope_parameters"):
        changes: dict[str, Any] = {spelling: scaling}
        network = load("eagle3", tmp_path / spelling, rope_theta=5e4, **changes)
        assert torch.equal(network.rotary.cos[:300], expected[0][0]) and torch.equal(network.rotary.sin[:300], expected[1][0])
    plain = load("eagle3", tmp_path / "plain", rope_theta=5e4)
    assert not torch.allclose(plain.rotary.cos[:300], expected[0][0], atol=1e-2)


def test_taps_under_eagle_config_count_from_a_layers_output(tmp_path: Path) -> None:
    nested = load("eagle3", tmp_path / "a", remove=(TAPS,), eagle_config={TAPS: [0, 3, 5], "use_aux_hidden_state": True})
    assert nested.taps == (1, 4, 6)
    assert load("eagle3", tmp_path / "b", eagle_config={TAPS: [1, 3, 4]}).taps == (2, 4, 5), "both, and they agree"
    assert load("eagle3", tmp_path / "c", remove=(TAPS,)).taps == (2, 4, 5), "the authors' own"


def test_an_eps_that_is_not_there_is_a_llamas(tmp_path: Path) -> None:
    network = load("eagle3", tmp_path, remove=("rms_norm_eps",))
    assert network.norm.variance_epsilon == 1e-6 != mini().config.rms_norm_eps


AUTHORS = {"architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "model_type": "llama"}
AUTHORS |= {"initializer_range": 0.02, "torch_dtype": "float16", "transformers_version": "4.28.1", "use_cache": True}
LLAMA2 = {**AUTHORS, "pretraining_tp": 1, "rope_scaling": None, "tie_word_embeddings": False}
LATER = {**LLAMA2, "attention_bias": False, "attention_dropout": 0.0, "mlp_bias": False, "max_window_layers": 48}
LATER |= {"sliding_window": 512, "use_sliding_window": False, "eos_token_id": [1, 2], "dtype": "bfloat16"}
PUBLISHED: list[tuple[str, dict[str, Any]]] = [  # what their config.json files hold besides sizes
    ("medusa", {"base_model_name_or_path": "lmsys/vicuna-7b-v1.3", "medusa_num_heads": 2, "transformers_version": "4.31.0"}),
    ("hydra_heads", {"base_model_name_or_path": "lmsys/vicuna-7b-v1.3", "transformers_version": "4.31.0"}),
    ("eagle", {**AUTHORS, "max_sequence_length": 2048, "tie_word_embeddings": False}),
    ("eagle", {**LLAMA2, "rope_theta": 500000.0, "bias": True}),
    ("eagle", {**AUTHORS, "qkv_bias": False, "sliding_window": 131072, "use_sliding_window": False, "max_window_layers": 28}),
    ("eagle3", {**LLAMA2, "num_hidden_layers": 8}),  # as the target's, in the authors' file for Vicuna 13B
    ("eagle3", {**LATER, "target_hidden_size": 256}),
    ("eagle3", {**LATER, "head_dim": 64, "norm_before_residual": False, "eagle_config": {"use_aux_hidden_state": True}}),
]


@pytest.mark.parametrize(("name", "more"), PUBLISHED)
def test_the_published_configs_load_and_change_nothing(name: str, more: dict[str, Any], tmp_path: Path) -> None:
    plain = load_network(NAMES[name], str(ZOO / name), mini())
    network = load(name, tmp_path, **more)
    assert (network.taps, len(network.state_dict())) == (plain.taps, len(plain.state_dict()))
    if "rope_theta" not in more:
        assert config_of(network) == config_of(plain)


def config_of(network: Any) -> dict[str, Any] | None:
    """What its layer computes by."""
    return network.layer_config.to_dict() if hasattr(network, "layer_config") else None


def test_a_loaded_network_writes_a_config_that_loads(tmp_path: Path) -> None:
    for name, kind in NAMES.items():
        network = load(name, tmp_path / name)
        write_checkpoint(network, tmp_path / name / "again")
        assert load_network(kind, str(tmp_path / name / "again"), mini()).config == network.config


def test_scaling_that_expansion_would_change_is_refused(tmp_path: Path) -> None:
    wide = load_model(str(ZOO / "target"), dtype="float32", device="cpu", shape={"hidden_size": 512, "head_dim": 128})
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    with pytest.raises(InputError, match="under rope_type=yarn its heads or positions have other frequencies"):
        load_network(Eagle3Network, changed("eagle3", tmp_path, rope_scaling=scaling), wide)


def other_target(kind: str) -> LanguageModel:
    """A small random OPT or GPT-2, whose configs name their sizes otherwise."""
    from transformers import AutoConfig, AutoModelForCausalLM

    ids = {"vocab_size": 128, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0, "max_position_embeddings": 256}
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "ffn_dim": 48, "word_embed_proj_dim": 32}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **ids, **sizes))  # type: ignore[no-untyped-call]
    return LanguageModel(model.double().eval())


@pytest.mark.parametrize("architecture", ["opt", "gpt2"])
@pytest.mark.parametrize("name", NAMES)
def test_a_target_with_learned_positions_is_drafted_for(architecture: str, name: str) -> None:
    expected = [out.output_ids for out in decoded(other_target(architecture), Autoregressive())]
    assert [out.output_ids for out in decoded(other_target(architecture), drafter_of(NAMES[name], "random"))] == expected
