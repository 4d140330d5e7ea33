"""Read, check and write weights of trained drafters, in the layouts their authors publish."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from torch import Tensor

from specbench.drafters.network import DraftNetwork
from specbench.errors import InputError, abbreviate, format_error
from specbench.models.finite import check_weights
from specbench.models.place import find_local_folder
from specbench.records.files import read_object

OURS = "model.safetensors"
INDEX = ".index.json"  # after the name of a weight file that is split into shards
RANDOM = "random"
OF_TARGET = "target"  # its weights are among the target's own
BUILT_IN = (RANDOM, OF_TARGET)  # checkpoints without their own files
FACTORS = "_scale"  # suffix of an int8 matrix's name: the tensor of that name holds a factor per row, (rows, 1)


def fill_network(network: DraftNetwork, tensors: Mapping[str, Tensor], place: str) -> None:
    """Load tensors into a network. Raises InputError for missing, unexpected and misshapen tensors, by name with both shapes.

    Also for tensors of the wrong type, such as integers for weights, and for weights that are NaN or infinite.
    """
    expected = network.state_dict()
    given = {name: tensor for name, tensor in tensors.items() if not name.startswith(network.unused)}
    misshapen = [
        f"{name} is {tuple(given[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in given and given[name].shape != tensor.shape
    ]
    kinds = {
        "misshapen": misshapen,
        "missing": [f"{name}, expected {tuple(tensor.shape)}" for name, tensor in expected.items() if name not in given],
        "not in the network": [name for name in given if name not in expected],
        "of the wrong type": [
            f"{name} is {given[name].dtype}, expected {tensor.dtype}"
            for name, tensor in expected.items()
            if name in given and not _is_like(given[name], tensor)
        ],
    }
    if wrong := "; ".join(f"{what}: {abbreviate(sorted(names))}" for what, names in kinds.items() if names):
        raise InputError(f"the checkpoint at {place} does not match its config: {wrong}")
    check_weights(given, f"the checkpoint at {place}")
    network.load_state_dict(dict(given), assign=True)


def _is_like(given: Tensor, expected: Tensor) -> bool:
    """Return whether both are floats, both whole numbers or both switches, and the given one is plain memory."""
    plain = given.layout == torch.strided and not given.is_quantized and not given.is_meta
    return plain and _classify(given) == _classify(expected)


def _classify(tensor: Tensor) -> str:
    if tensor.dtype == torch.bool:
        return "switch"
    return "float" if tensor.is_floating_point() else "complex" if tensor.is_complex() else "whole"


def read_tensors(folder: Path, files: Iterable[str]) -> dict[str, Tensor]:
    """Read the first weight file that exists, or the shards that its index names.

    Raises InputError if none does, for a broken file, and for a pickle of more than tensors.
    """
    names = [OURS, *files]
    for name in names:
        if (folder / name).is_file():
            return _dequantize(_read_file(folder / name))
        if (folder / f"{name}{INDEX}").is_file():
            return _read_shards(folder / f"{name}{INDEX}")
    raise InputError(f"no checkpoint at {folder}: expected one of {', '.join(names)}")


def _read_file(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        tensors: Any = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        if re.search("global|reduce|class", str(error).rpartition("WeightsUnpickler error")[2], re.IGNORECASE):
            raise InputError(f"{path}: holds more than plain tensors; code is never executed") from None
        raise InputError(f"{path}: cannot be read: it was not written by torch.save") from None
    except Exception as error:  # of any type: bytes in another format
        raise InputError(f"{path}: cannot be read: {format_error(error, longest=160)}") from None
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise InputError(f"{path}: expected a state dict: tensors by name")
    return {str(name): tensor for name, tensor in tensors.items()}


def _read_shards(index: Path) -> dict[str, Tensor]:
    """Read every file that an index names; all are in its folder."""
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(read_index(index).values())):
        if not (index.parent / name).is_file():
            raise InputError(f"{index}: names {name}, which does not exist")
        tensors |= _read_file(index.parent / name)
    return tensors


def read_index(index: Path) -> dict[str, str]:
    """Return which file of an index's folder holds each tensor. Raises InputError."""
    files = read_object(index).get("weight_map")
    if not files or not isinstance(files, dict) or not all(map(_is_name, files.values())):
        raise InputError(f'{index}: expected {{"weight_map": {{tensor: file beside this one, …}}}}')
    return files


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and Path(value).name == value


def find_folder(checkpoint: str) -> Path:
    """Return a checkpoint's folder, downloaded if it is a hub id (owner/name@revision). Raises InputError."""
    if (folder := find_local_folder(checkpoint)) is not None:
        return folder
    name, _, revision = checkpoint.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(f"no checkpoint at {checkpoint}: no such folder, and {str(error).splitlines()[0]}") from None


def write_checkpoint(network: DraftNetwork, folder: Path, file: str = OURS, storage: str = "float16") -> None:
    """Write config.json and the weights under one of the file names that `read_tensors` knows.

    storage: float16, or int8: matrices as integers with a float16 factor per row (`NAME_scale`), the rest as float16.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.cpu().clone().contiguous() for name, tensor in network.state_dict().items()}
    if storage == "int8":
        tensors = {name: part for whole in tensors.items() for name, part in _quantize(*whole).items()}
    tensors = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    (folder / "config.json").write_text(json.dumps(network.config, indent=2) + "\n", encoding="utf-8")
    if file.endswith(".safetensors"):
        save_file(tensors, folder / file)
    else:
        torch.save(tensors, folder / file)


def _quantize(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Return a matrix as int8 with a factor per row, and anything else unchanged."""
    if tensor.ndim != 2 or not tensor.is_floating_point():
        return {name: tensor}
    factors = (tensor.abs().amax(dim=1, keepdim=True) / 127).clamp(min=torch.finfo(torch.float16).tiny).half()
    return {name: (tensor / factors.float()).round().clamp(-127, 127).to(torch.int8), f"{name}{FACTORS}": factors}


def _dequantize(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with matrices of int8 times their factors as float32."""
    factors = {name.removesuffix(FACTORS): tensor for name, tensor in tensors.items() if name.endswith(FACTORS)}
    pairs = {name for name in factors if name in tensors and _is_quantized(tensors[name], factors[name])}
    rest = {name: tensor for name, tensor in tensors.items() if name.removesuffix(FACTORS) not in pairs}
    return rest | {name: tensors[name].float() * factors[name].float() for name in pairs}


def _is_quantized(matrix: Tensor, factors: Tensor) -> bool:
    """Return whether these are what `_quantize` makes; anything else is left to `fill_network`, which refuses it by name."""
    rows = matrix.dtype == torch.int8 and matrix.ndim == 2 and factors.shape == (len(matrix), 1)
    return rows and factors.is_floating_point()
