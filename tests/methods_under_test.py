"""Every method of conf/method, found by its YAML and built for a tiny target."""

from functools import lru_cache

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

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
def _settings(label: str) -> OmegaConf:
    return composed([f"method=[{label}]"]).method[label]


def drafter_of(label: str, architecture: str) -> Drafter:
    """A new drafter as its YAML describes it; one with a language model gets a tiny one, one with a checkpoint random weights."""
    settings = dict(_settings(label))
    if "checkpoint" in settings:
        settings["checkpoint"] = "random"
    if settings.pop("draft", None) is None:
        return instantiate(settings, _convert_="all")
    return instantiate(settings, _partial_=True, _convert_="all")(draft=draft_model_of(architecture))
