"""The real targets' YAMLs: complete, and their inline architectures have the published sizes."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from specbench import ROOT
from specbench.drafters.skip_sets import load_skip_set
from specbench.models.expand import expand_config
from specbench.setup.compose import compose_run

CONF = ROOT / "conf" / "target"
KEYS = {
    *("name", "path", "revision", "format", "dtype", "device", "device_map"),
    *("trust_remote_code", "weights", "shape", "config", "draft", "checkpoints", "datastore"),
}
PARAMETERS = {  # target, draft; as counted in the published checkpoints, tied embeddings once
    "vicuna_7b": (6_738_415_616, 68_030_208),
    "vicuna_13b": (13_015_864_320, 68_030_208),
    "vicuna_33b": (32_528_943_616, 68_030_208),
    "llama31_8b": (8_030_261_248, 1_235_814_400),
    "qwen25_7b": (7_615_616_512, 494_032_768),
    "qwen3_8b": (8_190_735_360, 596_049_920),
}
ALONE = {  # targets without a draft model
    "llama2_13b": 13_015_864_320,
    "llama2_13b_chat": 13_015_864_320,
    "codellama_13b": 13_016_028_160,
    "llama2_70b": 68_976_648_192,
}


def build(config: DictConfig) -> PreTrainedConfig:
    """The way a loader builds it: plain Python values, no download."""
    plain = OmegaConf.to_container(config)
    assert isinstance(plain, dict)
    return AutoConfig.for_model(**{str(key): value for key, value in plain.items()})


def load(name: str) -> DictConfig:
    config = OmegaConf.load(CONF / f"{name}.yaml")
    assert isinstance(config, DictConfig)
    return config


def parameters(config: DictConfig) -> int:
    """Built on the meta device: no memory, no weights."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(build(config))  # type: ignore[no-untyped-call]
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_inline_architectures_have_the_published_size(name: str) -> None:
    target = load(name)
    assert (parameters(target.config), parameters(target.draft.config)) == PARAMETERS[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_key_of_an_architecture_is_one_that_transformers_reads(name: str) -> None:
    target = load(name)
    for config in (target.config, target.draft.config):
        known = AutoConfig.for_model(config.model_type).to_dict()
        assert set(config) <= set(known), f"{set(config) - set(known)} would be ignored"


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_target_is_complete_and_names_itself(name: str) -> None:
    target = load(name)
    assert set(target) == KEYS and target.name == name
    assert set(target.draft) == {"path", "revision", "dtype", "config"}
    assert target.format == ("vicuna" if name.startswith("vicuna") else "template")
    assert target.trust_remote_code is False


def test_the_small_target_is_the_draft_model_of_its_large_sibling() -> None:
    small, large = load("qwen3_0_6b"), load("qwen3_8b")
    assert set(small) == KEYS and small.draft is None
    assert (small.path, small.revision, small.config) == (large.draft.path, large.draft.revision, large.draft.config)


@pytest.mark.parametrize("name", ALONE)
def test_the_targets_that_draft_themselves(name: str) -> None:
    target = load(name)
    assert set(target) == KEYS and target.name == name and target.draft is None
    assert parameters(target.config) == ALONE[name]
    assert set(target.config) <= set(AutoConfig.for_model("llama").to_dict())
    load_skip_set(target.checkpoints.self_speculative, target.config.num_hidden_layers)


@pytest.mark.parametrize("name", PARAMETERS)
def test_checkpoints_of_trained_drafters_are_hub_ids(name: str) -> None:
    for method, checkpoint in load(name).checkpoints.items():
        trained = ("medusa", "hydra_heads", "eagle", "eagle3", "p_eagle", "dflash", "dspark")
        assert method in trained and checkpoint.count("/") == 1


def test_rope_settings_arrive() -> None:
    rope = build(load("llama31_8b").draft.config).rope_parameters
    assert (rope["rope_type"], rope["rope_theta"], rope["factor"]) == ("llama3", 500_000.0, 32.0)


SHAPED = {  # the embedded target at a shape, its draft model; as published
    "1b": (1_100_048_384, 68_030_208),
    "7b": (PARAMETERS["vicuna_7b"][0], 68_030_208),
    "8b": (PARAMETERS["llama31_8b"][0], 68_030_208 + 2 * 768 * (128_256 - 32_000)),
    "13b": (PARAMETERS["vicuna_13b"][0], 68_030_208),
    "70b": (ALONE["llama2_70b"], 162_417_408),
}


@pytest.mark.parametrize("shape", SHAPED)
def test_the_embedded_target_expands_to_the_published_size(shape: str) -> None:
    target = compose_run([f"target.shape={shape}"]).target
    assert target.path and target.draft and target.draft["path"] and target.draft["shape"]
    sizes = expanded_size(target.path, target.sizes), expanded_size(target.draft["path"], target.draft["shape"])
    assert sizes == SHAPED[shape]
    assert target.draft["dtype"] == "auto"


def expanded_size(path: str, shape: Mapping[str, int]) -> int:
    model = AutoModelForCausalLM.from_pretrained(ROOT / path)
    with torch.device("meta"):
        large = AutoModelForCausalLM.from_config(expand_config(model, shape))  # type: ignore[no-untyped-call]
    return sum(parameter.numel() for parameter in large.parameters())


def test_without_such_a_shape_the_draft_model_stays_as_it_is() -> None:
    for overrides in ([], ["target.shape=100m"]):
        draft = compose_run(overrides).target.draft
        assert draft and (draft["shape"], draft["dtype"]) == (None, "float32")
