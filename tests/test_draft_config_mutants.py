"""Random changes of trained drafters' files: each loads as it says, or is refused in one line."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from methods.dflash import DFlashNetwork
from methods.dspark import DSparkNetwork
from methods.mtp import MtpNetwork
from methods.p_eagle import PEagleNetwork
from specbench.decoding.language_model import LanguageModel
from specbench.drafters.checkpoints import read_tensors, write_checkpoint
from specbench.drafters.config_keys import WITHOUT_EFFECT
from specbench.drafters.network_drafter import load_network
from specbench.errors import InputError
from tests.test_draft_configs import NAMES as EMBEDDED
from tests.test_draft_configs import TAPS
from tests.test_integrity import mutate
from tests.test_trained_drafters import drafter_of, first_draft
from tests.tiny import tiny_model

NAMES: dict[str, Any] = {
    **EMBEDDED,
    "p_eagle": PEagleNetwork,
    "dflash": DFlashNetwork,
    "dspark": DSparkNetwork,
    "mtp": MtpNetwork,
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-4, 200) | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=4,
)
MORE_KEYS = [
    *("rope_theta", "rope_scaling", "rope_parameters", "attention_bias", "mlp_bias", "norm_output", "norm_before_residual"),
    *("norm_before_fc", "fc_norm", "eagle_config", TAPS, "draft_vocab_size", "target_hidden_size", "own_embeddings", "bias"),
    *("qkv_bias", "head_dim", "hidden_act", "sliding_window", "tie_word_embeddings", "medusa_num_heads", "hydra_num_heads"),
    *("hidden_state_offset", "grounded_heads", "hydra_head_arch", *sorted(WITHOUT_EFFECT)),
    *("block_size", "mask_token_id", "target_layer_ids", "num_target_layers", "sample_from_anchor", "markov_rank", "layer_types"),
    *("markov_head_type", "enable_confidence_head", "confidence_head_with_markov", "num_nextn_predict_layers", "own_head"),
    *("mtp_hidden_states_first", "chain_hidden_post_norm", "draft_num_hidden_layers", "num_hidden_layers"),
]
PLAUSIBLE = st.sampled_from(
    [False, True, None, 0, 1, 2, 3, 4, 8, 16, 32, 48, 128, 1e-6, 1e6, "silu", "gelu", [0, 1, 2], [2, 1, 0]]
)
ROTARY = st.fixed_dictionaries(
    {},
    optional={
        **{key: st.sampled_from(["default", "linear", "llama3", "yarn", "dynamic", 3]) for key in ("rope_type", "type")},
        **{key: PLAUSIBLE | st.floats() for key in ("factor", "rope_theta", "low_freq_factor", "high_freq_factor", "beta_fast")},
        "original_max_position_embeddings": PLAUSIBLE,
    },
)
NESTED = st.fixed_dictionaries({}, optional={TAPS: PLAUSIBLE, "use_aux_hidden_state": PLAUSIBLE})


@lru_cache
def tiny_target() -> LanguageModel:
    return LanguageModel(tiny_model("llama", layers=4))


@lru_cache
def valid(name: str) -> Path:
    """A checkpoint that fits the tiny target."""
    folder = Path(mkdtemp(prefix="drafter-"))
    write_checkpoint(load_network(NAMES[name], "random", tiny_target()).float(), folder)
    return folder


def check_mutant(name: str, removed: list[str], changes: dict[str, Any]) -> None:
    """It loads and drafts what its config says, or is refused in one line."""
    folder = valid(name)
    original = (folder / "config.json").read_text()
    config = {key: value for key, value in json.loads(original).items() if key not in removed} | changes
    (folder / "config.json").write_text(json.dumps(config))
    try:
        network: Any = load_network(NAMES[name], str(folder), tiny_target())
    except InputError as error:
        assert "\n" not in str(error) and len(str(error)) < 700
        return
    finally:
        (folder / "config.json").write_text(original)
    for key, value in changes.items():
        harmless = not value or key in WITHOUT_EFFECT or key in ("partial_rotary_factor", "eagle_config", "sliding_window")
        assert harmless or key in network.config, f"{key}={value} had no effect"
    if name in ("eagle", "eagle3"):
        check_layer(network, config)
    (folder / "config.json").write_text(json.dumps(config))
    try:
        tree, logits = first_draft(tiny_target().model, drafter_of(NAMES[name], str(folder)))
    finally:
        (folder / "config.json").write_text(original)
    assert len(tree) > 1 and all(part.isfinite().all() for part in logits)


def check_layer(network: Any, config: dict[str, Any]) -> None:
    """The layer computes by the values of the config."""
    layer = network.layer_config
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    assert layer.rope_parameters["rope_theta"] == (rope.get("rope_theta") or config.get("rope_theta") or 10000.0)
    assert layer.rope_parameters["rope_type"] == (rope.get("rope_type") or rope.get("type") or "default")
    assert layer.rope_parameters.get("factor") == rope.get("factor")
    assert layer.hidden_act == (config.get("hidden_act") or "silu")
    assert layer.rms_norm_eps == (config.get("rms_norm_eps") or 1e-6)


def draw_changes(data: st.DataObject, name: str) -> tuple[list[str], dict[str, Any]]:
    keys = sorted(json.loads((valid(name) / "config.json").read_text()))
    removed = data.draw(st.lists(st.sampled_from(keys), max_size=2))
    any_key = st.sampled_from([*keys, *MORE_KEYS]) | st.text(max_size=8)
    changes = data.draw(st.dictionaries(any_key, PLAUSIBLE | JSON, max_size=2))
    for key, strategy in (("rope_scaling", ROTARY), ("rope_parameters", ROTARY), ("eagle_config", NESTED)):
        if key in changes or data.draw(st.integers(0, 7)) == 0:
            changes[key] = data.draw(strategy | PLAUSIBLE)
    return removed, changes


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_config_loads_as_it_says_or_is_refused_in_a_line(name: str, data: st.DataObject) -> None:
    check_mutant(name, *draw_changes(data, name))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_of_thousands_of_configs(name: str, data: st.DataObject) -> None:
    check_mutant(name, *draw_changes(data, name))


TENSORS = {"fc.weight": torch.ones(2, 3), "norm.weight": torch.zeros(4), "d2t": torch.arange(3)}
INDEX = json.dumps({"metadata": {"total_size": 64}, "weight_map": dict.fromkeys(TENSORS, "part.safetensors")})


@lru_cache
def weight_files() -> dict[str, bytes]:
    """The same tensors in every layout that is read."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        save_file(TENSORS, folder / "model.safetensors")
        torch.save(TENSORS, folder / "pytorch_model.bin")
        torch.save(TENSORS, folder / "old.bin", _use_new_zipfile_serialization=False)
        made = {file.name: file.read_bytes() for file in folder.iterdir()}
    return {**made, "model.safetensors.index.json": INDEX.encode()}


def check_damage(data: st.DataObject) -> None:
    """Tensors by name, or one line; safetensors and torch.save hold no sums, so damaged numbers may remain."""
    name = data.draw(st.sampled_from(sorted(weight_files())))
    with TemporaryDirectory() as folder:
        (Path(folder) / name).write_bytes(data.draw(mutate(weight_files()[name])))
        (Path(folder) / "part.safetensors").write_bytes(weight_files()["model.safetensors"])
        try:
            tensors = read_tensors(Path(folder), ["pytorch_model.bin", "old.bin"])
        except InputError as error:
            assert "\n" not in " ".join(str(error).split()) and len(str(error)) < 700
            return
    assert all(isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in tensors.items())


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_damaged_weights_are_read_or_refused_in_a_line(data: st.DataObject) -> None:
    check_damage(data)


@pytest.mark.slow
@settings(max_examples=4000, deadline=None)
@given(data=st.data())
def test_thousands_of_damaged_weights(data: st.DataObject) -> None:
    check_damage(data)
