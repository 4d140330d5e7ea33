"""Every method of conf/method, found by its YAML and built for a tiny target."""

from functools import lru_cache
from typing import Any

import torch
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from specbench.compose import CONF, composed
from specbench.decoding.drafter import Drafter
from specbench.decoding.language_model import LanguageModel
from tests.tiny import tiny_model

LABELS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
LAYERS = 2
NOISE = 0.03  # of each weight's spread: such a draft model is right more often than not


@lru_cache
def target_of(architecture: str) -> LanguageModel:
    return LanguageModel(tiny_model(architecture, LAYERS))


@lru_cache
def draft_model_of(architecture: str) -> LanguageModel:
    """The tiny target with perturbed weights, so that its drafts are accepted in part."""
    model = tiny_model(architecture, LAYERS)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            weight += NOISE * weight.std() * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
    return LanguageModel(model)


@lru_cache
def _settings(label: str) -> DictConfig:
    return composed([f"method=[{label}]"]).method[label]


def drafter_of(label: str, architecture: str) -> Drafter:
    """A new drafter as its YAML describes it; a language model in it is a tiny one, checkpoint and datastore are random."""
    return _made(OmegaConf.to_container(_settings(label), resolve=True), architecture)


def _made(settings: Any, architecture: str) -> Any:
    """Hydra's `instantiate`, parts of a method (mappings with a _target_) first."""
    parts = {name: part for name, part in settings.items() if isinstance(part, dict) and "_target_" in part and name != "draft"}
    settings |= {name: _made(part, architecture) for name, part in parts.items()}
    for name in ("checkpoint", "datastore"):
        if name in settings:
            settings[name] = "random"
    if "draft" in settings:
        settings["draft"] = draft_model_of(architecture)
    return get_object(settings.pop("_target_"))(**settings)
