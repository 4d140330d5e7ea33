"""Load a model by a target's settings: hub id or folder, pretrained or random, expanded, packed for the CPU."""

import copy
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.hub import cached_file

from specbench.bounds import MOST_LAYERS, find_depth
from specbench.decoding.language_model import LanguageModel
from specbench.errors import InputError, is_out_of_memory
from specbench.machine.devices import get_free_memory, get_total_memory, pick_device, pick_dtype
from specbench.models.expand import expand_config, expand_model
from specbench.models.finite import check_weights
from specbench.models.packed import can_pack
from specbench.models.place import Place, check_hub_id, find_local_folder, locate
from specbench.models.products import pack
from specbench.models.quantize import quantize_layers
from specbench.models.refusals import (
    check_decoder,
    check_keys,
    check_plain_layers,
    check_quantization,
    describe_failure,
    describe_misfits,
    take_message,
)
from specbench.models.self_test import check_float32_copy, check_forward
from specbench.models.stored import check_stored_types

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tokenizer_config.json")


def load_model(
    path: str | None,
    revision: str | None = None,
    weights: str = "pretrained",
    config: Mapping[str, Any] | None = None,
    dtype: str = "auto",
    device: str = "auto",
    device_map: str | Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
    shape: Mapping[str, int] | None = None,
    packed: bool = True,
    quantize: str | None = None,
) -> LanguageModel:
    """Load a model. weights: pretrained, or random from only `config`. shape: expand to it, outputs unchanged.

    packed: pack linear layers in oneDNN's layout where `can_pack` allows. quantize: store their weights as integers instead.
    Raises InputError if the model cannot be loaded, if a weight is not a finite number, or if our forward does not compute what
    transformers' own does.
    """
    where = pick_device(device)
    kind = pick_dtype(dtype, where)
    if shape is not None and device_map is not None:
        raise InputError("shape: an expanded target must be on one device; set device_map=null")
    if weights not in ("pretrained", "random"):
        raise InputError(f"weights={weights}: expected pretrained or random")
    try:
        if weights == "random":
            model = _build_random(config, kind, where)
        else:
            model = _load_pretrained(path, revision, kind, device_map, trust_remote_code)
        check_weights(model, f"the checkpoint at {path}" if path else "the model")
        if shape is not None:
            model = _expand(model, shape, kind, where, packed)
        if device_map is None:
            model = model.to(where)  # type: ignore[arg-type]
        loaded = _try_out(model, device_map is None, packed and can_pack(where, kind), quantize)
    except torch.OutOfMemoryError:
        what = "config: its model" if weights == "random" else path
        raise InputError(f"{what} does not fit in the memory of {where}; try another device, dtype or device_map") from None
    if path and weights == "pretrained":
        _name_quantization(loaded, locate(path), revision)
    return loaded


def _name_quantization(loaded: LanguageModel, place: Place, revision: str | None) -> None:
    """Say which method the checkpoint's config names, and whether transformers kept it: without a GPU it undoes some."""
    given = None if place.gguf else _read_config(place, revision).get("quantization_config")
    if given is not None and loaded.quantised is None:
        method = str(given.get("quant_method", "bitsandbytes"))
        kept = bool(getattr(loaded.model, "is_quantized", False))
        loaded.quantised, loaded.dequantised = (method, None) if kept else (None, method)


def _expand(
    model: PreTrainedModel, shape: Mapping[str, int], dtype: torch.dtype, device: torch.device, packed: bool
) -> PreTrainedModel:
    """Return the model at a shape. Raises InputError if its device does not hold it."""
    with torch.device("meta"):
        check_room(build_model(expand_config(model, shape)), dtype, device, packed)
    return expand_model(model, shape, device)


def _try_out(model: PreTrainedModel, one_device: bool, packed: bool, quantize: str | None) -> LanguageModel:
    """Return the model as it will run, after the self-test. Raises InputError.

    A quantised model is not compared with the float32 copy, whose weights are others.
    """
    check_decoder(model)
    loaded = LanguageModel(model)
    float32 = check_float32_copy(loaded) if one_device and not quantize else None  # before it is packed
    if quantize:
        quantize_layers(model, quantize)
        loaded.quantised = quantize
    elif packed:
        loaded.products = pack(model)
    loaded.self_test = check_forward(loaded, float32) | {"in_float32": float32.figures if float32 else None}
    return loaded


def check_room(
    model: nn.Module, dtype: torch.dtype, device: torch.device, packed: bool, what: str = "shape", total: bool = False
) -> None:
    """Raise InputError if a model, still on the meta device, does not fit in its device's free memory. total: in all of it."""
    weights = sum(weight.numel() for weight in model.parameters())
    needed, room = estimate_memory(weights, dtype, device, packed), (get_total_memory if total else get_free_memory)(device)
    if needed > room:
        size = f"{weights / 1e9:.1f} billion weights need {needed / 1e9:.1f} GB on {device} as {str(dtype)[6:]}"
        twice = " (plain and packed for its matrix units)" if needed > weights * dtype.itemsize else ""
        raise InputError(f"{what}: {size}{twice}; {room / 1e9:.1f} GB are {'installed' if total else 'free'}")


def check_model(
    path: str | None,
    shape: Mapping[str, int] | None = None,
    revision: str | None = None,
    weights: str = "pretrained",
    config: Mapping[str, Any] | None = None,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
) -> None:
    """Raise InputError for a folder that does not exist, and for a shape that the model cannot be expanded to.

    Also for a shape that this device could never hold. Reads no weights, so it can be called before the device is free.
    """
    where = pick_device(device)
    if weights != "random" and not path:
        raise InputError(f"path={'null' if path is None else repr(path)}: expected a hub id or a folder")
    place = locate(path) if weights != "random" and path else None
    if shape is None:
        return
    try:
        if place is None:
            architecture = create_config(config)
        else:
            remote = {"revision": revision, "trust_remote_code": trust_remote_code}
            architecture = AutoConfig.from_pretrained(place.name, **remote, **place.options)
        with torch.device("meta"):
            large = build_model(expand_config(build_model(architecture), shape))
    except (OSError, ValueError, TypeError):  # of the model's own config, which loading it explains
        return
    check_room(large, pick_dtype(dtype, where), where, packed=True, total=True)


def estimate_memory(weights: int, dtype: torch.dtype, device: torch.device, packed: bool = True) -> int:
    """Return the bytes that a number of weights take once loaded; packed layers hold theirs twice."""
    return weights * dtype.itemsize * (2 if packed and can_pack(device, dtype) else 1)


def load_draft(draft: Mapping[str, Any] | None, device: str, weights: str) -> LanguageModel:
    """Load the draft model that the target's YAML names; methods with the same one share it."""
    if draft is None:
        raise InputError("this target names no draft model: set target.draft.path, or leave the method out")
    return _load_shared_draft(json.dumps({"weights": weights, **draft, "device": device}))


@lru_cache(maxsize=1)
def _load_shared_draft(settings: str) -> LanguageModel:
    return load_model(**json.loads(settings))


def load_tokenizer(path: str, revision: str | None, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    place = locate(path)
    check_hub_id(place, revision)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            place.name, revision=revision, trust_remote_code=trust_remote_code, **place.options
        )
        known = bool(tokenizer("Hello").input_ids)  # where no file is, transformers makes an empty one for some architectures
    except Exception as error:  # the tokenizers library raises bare exceptions
        reason = _describe_surroundings(path, place, revision, trust_remote_code)
        raise InputError(reason or f"no tokenizer at {path}: {take_message(error)}") from None
    if not known and (reason := _describe_surroundings(path, place, revision, trust_remote_code)):
        raise InputError(reason)
    return tokenizer


def _describe_surroundings(path: str, place: Place, revision: str | None, trust_remote_code: bool) -> str | None:
    """Return what keeps a tokenizer from being loaded, if it is not the tokenizer: no file of it, or a broken config.json."""
    folder = find_local_folder(path)
    if folder and not any((folder / name).is_file() for name in TOKENIZERS):
        return f"no tokenizer at {path}: expected a folder with one of {', '.join(TOKENIZERS)}"
    try:
        AutoConfig.from_pretrained(place.name, revision=revision, trust_remote_code=trust_remote_code, **place.options)
    except Exception as error:  # of any type: a config is read by its own class
        file = path if place.gguf else f"{path}/config.json"
        return f"{file}: {describe_failure(error, _read_config(place, revision))}"
    return None


def _load_pretrained(
    path: str | None, revision: str | None, dtype: torch.dtype, device_map: Any, trust_remote_code: bool
) -> PreTrainedModel:
    if path is None:
        raise InputError("target.path is missing; expected a hub id or a folder")
    place = locate(path)
    check_hub_id(place, revision)
    config = _read_config(place, revision)
    quantization = config.get("quantization_config")
    check_quantization(quantization, place.name)
    if deep := find_depth(config):
        raise InputError(f"{path}/config.json: {deep}: expected at most {MOST_LAYERS:,}")
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            place.name,
            revision=revision,
            dtype=dtype,
            device_map=device_map,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below
            **place.options,
        )
    except UnpicklingError:
        raise InputError(f"no model at {path}: its .bin file holds more than plain tensors; code is never executed") from None
    except Exception as error:  # of any type: what does not fit is found all over transformers
        if is_out_of_memory(error):
            raise torch.OutOfMemoryError(str(error)) from None
        raise InputError(f"no model at {path}: {describe_failure(error, config)}") from None
    model, info = loaded
    if wrong := describe_misfits(model, info, config):
        raise InputError(f"the checkpoint at {path} does not match its config: {wrong}")
    if place.gguf:
        _forget_quantization(model)
    elif quantization:
        check_plain_layers(model, dtype, place.name)
    else:
        check_stored_types(model, _find_stored(place.name, revision), path)
    return cast(PreTrainedModel, model)


def _forget_quantization(model: PreTrainedModel) -> None:
    """Let a model whose weights were computed from a GGUF file be cast and saved like any other: nothing of it is quantised."""
    vars(model).update(is_quantized=False, hf_quantizer=None)
    vars(model.config).pop("quantization_config", None)


def _read_config(place: Place, revision: str | None) -> dict[str, Any]:
    """Return a model's config, or nothing if it cannot be read: loading the model reports why."""
    try:
        config: dict[str, Any] = PretrainedConfig.get_config_dict(place.name, revision=revision, **place.options)[0]
    except Exception:  # of any type: a hub's, a file's
        return {}
    return config


def _find_stored(place: str, revision: str | None) -> Path:
    """Return the folder of a loaded model; for a hub id, the one in transformers' cache."""
    return Path(str(cached_file(place, "config.json", revision=revision, local_files_only=True))).parent


def _build_random(config: Mapping[str, Any] | None, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    architecture = create_config(config)
    try:
        with torch.random.fork_rng(), torch.device(device):
            torch.manual_seed(0)
            return build_model(architecture, dtype=dtype)
    except Exception as error:  # of any type: the config may fit no architecture
        if is_out_of_memory(error):
            raise torch.OutOfMemoryError(str(error)) from None
        raise InputError(f"config: no model can be built from it: {describe_failure(error, config or {})}") from None


def create_config(config: Mapping[str, Any] | None) -> PretrainedConfig:
    """Return the architecture of random weights. Raises InputError, also for a key that it does not have."""
    if config is None:
        raise InputError("config=null: weights=random needs the model's architecture")
    if "model_type" not in config:
        raise InputError("config: expected a model_type, such as llama")
    try:
        architecture: PretrainedConfig = AutoConfig.for_model(**copy.deepcopy(dict(config)))
        check_keys(config, architecture)
    except InputError:
        raise
    except Exception as error:  # of any type: what does not fit is found all over transformers
        raise InputError(f"config: no model can be built from it: {describe_failure(error, config)}") from None
    return architecture


def build_model(config: PretrainedConfig, **options: torch.dtype) -> PreTrainedModel:
    """Return a model of random weights."""
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, **options)  # type: ignore[no-untyped-call]
    return model
