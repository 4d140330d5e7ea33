"""From a target's settings to a loaded model: hub id or folder, pretrained or random, expanded, packed for the CPU."""

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from specbench import ROOT
from specbench.decoding.language_model import LanguageModel
from specbench.errors import InputError, abbreviate
from specbench.machine.devices import get_free_memory, pick_device, pick_dtype
from specbench.models.expand import expand_config, expand_model
from specbench.models.packed import can_pack, pack


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
) -> LanguageModel:
    """weights: pretrained, or random (from `config` alone, nothing downloaded). shape: a larger one, outputs unchanged.

    packed: on a CPU, linear layers in oneDNN's layout where that exists. Raises InputError for what cannot be had.
    """
    where = pick_device(device)
    kind = pick_dtype(dtype, where)
    if shape is not None and device_map is not None:
        raise InputError("shape: an expanded target lies on one device; set device_map=null")
    if weights not in ("pretrained", "random"):
        raise InputError(f"weights={weights}: expected pretrained or random")
    try:
        if weights == "random":
            model = _build_random(config, kind, where)
        else:
            model = _load_pretrained(path, revision, kind, device_map, trust_remote_code)
        if shape is not None:
            with torch.device("meta"):
                check_room(AutoModelForCausalLM.from_config(expand_config(model, shape)), kind, where, packed)
            model = expand_model(model, shape, where)
        if device_map is None:
            model = model.to(where)  # type: ignore[arg-type]
    except torch.OutOfMemoryError:
        raise InputError(f"{path} does not fit the memory of {where}; try another device, dtype or device_map") from None
    if packed and can_pack(where, kind):
        pack(model)
    made = LanguageModel(model)
    made.check_attention()
    return made


def check_room(model: nn.Module, dtype: torch.dtype, device: torch.device, packed: bool, what: str = "shape") -> None:
    """Raises InputError where a model, on the meta device still, will not fit the free memory of its own."""
    weights = sum(weight.numel() for weight in model.parameters())
    needed, free = estimate_memory(weights, dtype, device, packed), get_free_memory(device)
    if needed > free:
        size = (
            f"{weights / 1e9:.1f} billion weights need {needed / 1e9:.1f} GB on {device} as {str(dtype).removeprefix('torch.')}"
        )
        twice = ", packed for its matrix units beside the plain ones" if needed > weights * dtype.itemsize else ""
        raise InputError(f"{what}: {size}{twice}, where {free / 1e9:.1f} GB are free")


def estimate_memory(weights: int, dtype: torch.dtype, device: torch.device, packed: bool = True) -> int:
    """What so many weights take once loaded; packed layers hold theirs twice."""
    return weights * dtype.itemsize * (2 if packed and can_pack(device, dtype) else 1)


def load_draft(draft: Mapping[str, Any] | None, device: str, weights: str) -> LanguageModel:
    """The draft model that a target's YAML names beside it; methods that name the same one share it."""
    if draft is None:
        raise InputError("this target names no draft model: set target.draft.path, or leave the method out")
    return _load_shared_draft(json.dumps({"weights": weights, **draft, "device": device}))


@lru_cache(maxsize=1)
def _load_shared_draft(settings: str) -> LanguageModel:
    return load_model(**json.loads(settings))


def load_tokenizer(path: str, revision: str | None, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(_resolve_path(path), revision=revision, trust_remote_code=trust_remote_code)
    except InputError:
        raise
    except Exception as error:  # the tokenizers library raises bare ones
        raise InputError(f"no tokenizer at {path}: {_take_first_line(error)}") from None


def _load_pretrained(
    path: str | None, revision: str | None, dtype: torch.dtype, device_map: Any, trust_remote_code: bool
) -> PreTrainedModel:
    if path is None:
        raise InputError("target.path is missing: a hub id or a folder")
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            _resolve_path(path),
            revision=revision,
            dtype=dtype,
            device_map=device_map,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name and with both shapes
        )
    except torch.OutOfMemoryError:
        raise
    except UnpicklingError:
        raise InputError(f"no model at {path}: its .bin file holds more than plain tensors, which is never executed") from None
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(f"no model at {path}: {_take_first_line(error)}") from None
    model, found = loaded
    if wrong := _describe_misfits(model, found):
        raise InputError(f"the checkpoint at {path} does not fit its config: {wrong}")
    return model


def _describe_misfits(model: PreTrainedModel, found: Mapping[str, Any]) -> str:
    """Tensors of a checkpoint that have another shape, are missing or have no place in the model; empty when all fit."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    misshapen = [f"{name} is {tuple(there)}, expected {tuple(wanted)}" for name, there, wanted in found["mismatched_keys"]]
    missing = [f"{name}, expected {shapes.get(name, 'it')}" for name in found["missing_keys"]]
    kinds = {"misshapen": misshapen, "missing": missing, "not in the model": list(found["unexpected_keys"])}
    return "; ".join(f"{kind}: {abbreviate(sorted(names))}" for kind, names in kinds.items() if names)


def _build_random(config: Mapping[str, Any] | None, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    if config is None:
        raise InputError("weights=random needs target.config, the model's architecture")
    if "model_type" not in config:
        raise InputError("target.config: expected a model_type, such as llama")
    try:
        made = AutoConfig.for_model(**config)
        with torch.random.fork_rng(), torch.device(device):
            torch.manual_seed(0)
            return AutoModelForCausalLM.from_config(made, dtype=dtype)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if "alloc" in str(error):  # main memory: torch has no exception of its own for it
            raise torch.OutOfMemoryError(str(error)) from None
        raise InputError(f"target.config makes no model: {_take_first_line(error)}") from None
    except Exception as error:  # whatever a config that fits no architecture makes of it
        raise InputError(f"target.config makes no model: {_take_first_line(error)}") from None


def find_local_folder(path: str) -> Path | None:
    """The folder meant by a target's path: of the checkout, else anywhere; None for a hub id."""
    return next((folder for folder in (ROOT / path, Path(path).expanduser()) if folder.is_dir()), None)


def _resolve_path(path: str) -> str:
    """A folder, else a hub id. Raises InputError for what can only be a folder and is none."""
    if (folder := find_local_folder(path)) is not None:
        return str(folder)
    if path.count("/") > 1 or path.startswith((".", "~", "/")):
        raise InputError(f"no model at {path}: no such folder, and no hub id, which has the form owner/name")
    return path


def _take_first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
