"""A model as it will be loaded, before it is: its architecture in a rehearsal, with weights that have no contents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, PretrainedConfig

from specbench.decoding.language_model import LanguageModel
from specbench.errors import InputError
from specbench.machine.devices import pick_device, pick_dtype
from specbench.machine.rehearsal import pause_rehearsal
from specbench.models.expand import expand_config
from specbench.models.load import build_model, create_config
from specbench.models.place import locate


def outline_model(
    path: str | None,
    revision: str | None = None,
    weights: str = "pretrained",
    config: Mapping[str, Any] | None = None,
    dtype: str = "auto",
    device: str = "auto",
    device_map: str | Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
    shape: Mapping[str, int] | None = None,
) -> LanguageModel:
    """Return, in a rehearsal, the model that `load_model` would return for the same settings, unpacked and on one device."""
    where = pick_device(device)
    kind = pick_dtype(dtype, where)
    with pause_rehearsal():
        architecture = create_config(config) if weights == "random" else _read_architecture(path, revision, trust_remote_code)
        if shape is not None:
            with torch.device("meta"):
                architecture = expand_config(build_model(architecture), shape)
    with torch.device(where):
        return LanguageModel(build_model(architecture, dtype=kind))


def _read_architecture(path: str | None, revision: str | None, trust_remote_code: bool) -> PretrainedConfig:
    place = locate(path or "")
    architecture: PretrainedConfig = AutoConfig.from_pretrained(
        place.name, revision=revision, trust_remote_code=trust_remote_code, **place.options
    )
    return architecture


def outline_draft(draft: Mapping[str, Any] | None, device: str, weights: str) -> LanguageModel:
    """Return, in a rehearsal, the model that `load_draft` would return."""
    if draft is None:
        raise InputError("this target names no draft model: set target.draft.path, or leave the method out")
    return outline_model(**{"weights": weights, **draft, "device": device})
