"""One line for what transformers and the files of a model may raise."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from specbench.errors import InputError, abbreviate, format_error, suggest_choices, suggest_nearest
from specbench.models.packed import is_plain
from specbench.records.files import read_text
from specbench.records.nested import flatten

SETTINGS = ("config.json", "generation_config.json", "tokenizer_config.json", "model.safetensors.index.json")
LARGEST = 64 * 2**20  # bytes of a settings file; an index of 200,000 tensors has 20 million
OTHER_INPUTS = ("vision_config", "audio_config")
LONGEST = 400  # characters of a library's message


def check_settings(folder: Path) -> None:
    """Raise InputError unless each of a model's settings files that exist holds one JSON object."""
    for name in SETTINGS:
        if (folder / name).exists():
            _check_mapping(folder / name)


def _check_mapping(path: Path) -> None:
    """Raise InputError unless a file holds one JSON object, as transformers reads it: NaN and keys that come twice pass."""
    text = read_text(path, LARGEST)
    try:
        settings: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    if not isinstance(settings, dict):
        raise InputError(f"{path}: expected a mapping of settings, {{…}}")


def describe_failure(error: BaseException, config: Mapping[str, Any]) -> str:
    """Return in one line why transformers could not build a model from a config."""
    if isinstance(error, KeyError) and error.args and (names := _find_settings(error.args[0], config)):
        return f"transformers knows no {' and no '.join(f'{name}={error.args[0]}' for name in names)}"
    if found := re.search(r"Unrecognized configuration class <class '[\w.]*\.(\w+)'>", str(error)):
        return describe_other_inputs(config) or f"{found[1]} is not the config of a decoder-only language model"
    if isinstance(error, (ImportError, OSError, ValueError, RuntimeError)) and str(error).strip():
        return take_message(error)
    return format_error(error)


def describe_other_inputs(config: Mapping[str, Any]) -> str | None:
    """Return a message if the model of a config also reads images or sound, None for a plain language model."""
    parts = [name for name in OTHER_INPUTS if config.get(name)]
    if not parts:
        return None
    kind = config.get("model_type")
    return f"{kind} reads more than text ({', '.join(parts)}), and transformers does not load only its text part"


def _find_settings(value: Any, config: Mapping[str, Any]) -> list[str]:
    return [name for name, given in flatten(config) if isinstance(given, str) and given == value]


def take_message(error: BaseException) -> str:
    """Return the first line of an error's text, and those after it as long as a line ends with a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    end = next((number for number, line in enumerate(lines, start=1) if not line.endswith(":")), len(lines))
    return " ".join(lines[:end])[:LONGEST]


def check_decoder(model: PreTrainedModel) -> None:
    """Raise InputError for a model that reads its text in both directions, or with an encoder."""
    config = model.config.get_text_config()
    switch = hasattr(type(config), "is_decoder")  # of the kinds that are encoders unless told otherwise; others ignore the key
    kind = getattr(type(config), "is_encoder_decoder", False)  # transformers may have built only its decoder
    if kind or getattr(config, "is_encoder_decoder", False):
        raise InputError(f"{config.model_type} is an encoder and a decoder; expected a decoder-only language model")
    if switch and not config.is_decoder:
        raise InputError(f"{config.model_type} is an encoder (is_decoder: false); expected a decoder-only language model")


def check_keys(given: Mapping[str, Any], config: PretrainedConfig, place: str = "config") -> None:
    """Raise InputError for a key that a config of this kind does not have; transformers keeps it without using it."""
    known = {*vars(type(config)()), "model_type"}
    for key, value in given.items():
        part = vars(config).get(key)
        if isinstance(value, Mapping) and isinstance(part, PretrainedConfig):
            check_keys(value, part, f"{place}.{key}")
        elif key in vars(config) and key not in known:
            nearest = suggest_nearest(key, [*known, *config.attribute_map])
            raise InputError(f"{place}.{key}: {config.model_type} has no such setting{nearest}")


def check_quantization(given: Any, place: str) -> None:
    """Raise InputError for a method that transformers would ignore with a warning. given: quantization_config, or None."""
    if given is None:
        return
    if not isinstance(given, dict):
        raise InputError(f"{place}/config.json: quantization_config={given}: expected a mapping with quant_method")
    method, known = given.get("quant_method"), ["bitsandbytes", *AUTO_QUANTIZATION_CONFIG_MAPPING]
    if method is not None and method not in known:
        raise InputError(
            f"{place}/config.json: quantization_config.quant_method={method}: expected {suggest_choices(method, known)}"
        )


def check_plain_layers(model: PreTrainedModel, dtype: torch.dtype, place: str) -> None:
    """Raise InputError for a checkpoint marked as quantised whose plain layers are loaded in a dtype other than requested."""
    plain = (module.weight.dtype for module in model.modules() if is_plain(module))
    other = next((found for found in plain if found != dtype), None)
    if other is not None:
        raise InputError(
            f"{place}/config.json: quantization_config: transformers loads its plain layers as {str(other)[6:]}, "
            f"not the {str(dtype)[6:]} asked for"
        )


def describe_misfits(model: PreTrainedModel, info: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Return the misshapen, missing and unexpected tensors of a checkpoint; empty if all fit. config: its own."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    misshapen = [f"{name} is {tuple(given)}, expected {tuple(expected)}" for name, given, expected in info["mismatched_keys"]]
    missing = [f"{name}, expected {shapes.get(name, 'it')}" for name in info["missing_keys"]]
    kinds = {"misshapen": misshapen, "missing": missing, "not in the model": list(info["unexpected_keys"])}
    said = [f"{kind}: {abbreviate(sorted(names))}" for kind, names in kinds.items() if names]
    other = describe_other_inputs(config) if info["unexpected_keys"] else None
    return "; ".join([*said, *([other] if other else [])])
