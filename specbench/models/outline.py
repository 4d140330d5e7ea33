"""A model before it is loaded: its architecture in a rehearsal, with weights that have no contents."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig, PretrainedConfig
from transformers.initialization import no_init_weights

from specbench.decoding.language_model import LanguageModel
from specbench.errors import InputError, format_error
from specbench.machine.devices import pick_device, pick_dtype
from specbench.machine.rehearsal import pause_rehearsal
from specbench.models.expand import expand_config
from specbench.models.load import build_model, create_config, load_model
from specbench.models.place import locate


def outline_model(**given: Any) -> LanguageModel:
    """Return, in a rehearsal, the model that `load_model` would return for the same arguments, unpacked and on one device.

    Raises InputError for layers that are quantised at load: how much memory their library uses in a forward is not known.
    """
    bound = signature(load_model).bind(**given)
    bound.apply_defaults()
    chosen = SimpleNamespace(**bound.arguments)
    if chosen.quantize is not None:
        raise InputError(f"quantize={chosen.quantize}: its memory use is not known before the target is loaded")
    where = pick_device(chosen.device)
    with pause_rehearsal():
        random = chosen.weights == "random"
        architecture = create_config(chosen.config) if random else _read_architecture(chosen)
        if chosen.shape is not None:
            with torch.device("meta"):
                architecture = expand_config(build_model(architecture), chosen.shape)
    with torch.device(where), no_init_weights():  # which may draw until a number fits, and no number is ever read here
        model = build_model(architecture, dtype=pick_dtype(chosen.dtype, where))
    model.tie_weights()
    return LanguageModel(model)


def describe_unloaded(**given: Any) -> LanguageModel:
    """Return the model that `load_model` would return for the same arguments, on the device "meta": only its sizes are used.

    Its folder needs no weights. Raises InputError for one without a config that can be read.
    """
    bound = signature(load_model).bind(**given)
    bound.apply_defaults()
    chosen = SimpleNamespace(**bound.arguments)
    where = pick_device(chosen.device)
    random = chosen.weights == "random"
    try:
        architecture = create_config(chosen.config) if random else _read_architecture(chosen)
        with torch.device("meta"):
            model = build_model(architecture, dtype=pick_dtype(chosen.dtype, where))
            if chosen.shape is not None:
                model = build_model(expand_config(model, chosen.shape), dtype=pick_dtype(chosen.dtype, where))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"no model at {chosen.path}: {format_error(error)}") from None
    if not random:
        model.generation_config = _read_generation_config(chosen) or model.generation_config
    described = LanguageModel(model)
    described.device = where  # on which the run is measured
    return described


def _read_generation_config(chosen: SimpleNamespace) -> GenerationConfig | None:
    place = locate(chosen.path or "")
    try:
        return GenerationConfig.from_pretrained(place.name, revision=chosen.revision)
    except (OSError, ValueError):
        return None


def _read_architecture(chosen: SimpleNamespace) -> PretrainedConfig:
    place = locate(chosen.path or "")
    architecture: PretrainedConfig = AutoConfig.from_pretrained(
        place.name, revision=chosen.revision, trust_remote_code=chosen.trust_remote_code, **place.options
    )
    return architecture


def outline_draft(draft: Mapping[str, Any] | None, device: str, weights: str) -> LanguageModel:
    """Return, in a rehearsal, the model that `load_draft` would return."""
    if draft is None:
        raise InputError("this target names no draft model: set target.draft.path, or leave the method out")
    return outline_model(**{"path": None, "weights": weights, **draft, "device": device})
