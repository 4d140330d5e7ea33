"""Read, check and write weights of trained drafters, in the layouts their authors publish."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from specbench.drafters.network import DraftNetwork
from specbench.errors import InputError, abbreviate
from specbench.models.load import find_local_folder

OURS = "model.safetensors"
RANDOM = "random"


def fill_network(network: DraftNetwork, tensors: Mapping[str, Tensor], place: str) -> None:
    """Load tensors into a network. Raises InputError for missing, unexpected and misshapen tensors, by name with both shapes."""
    expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
    given = {name: tensor for name, tensor in tensors.items() if not name.startswith(network.unused)}
    misshapen = [
        f"{name} is {tuple(given[name].shape)}, expected {tuple(shape)}"
        for name, shape in expected.items()
        if name in given and given[name].shape != shape
    ]
    missing = [f"{name}, expected {tuple(shape)}" for name, shape in expected.items() if name not in given]
    kinds = {"misshapen": misshapen, "missing": missing, "not in the network": [name for name in given if name not in expected]}
    if wrong := "; ".join(f"{what}: {abbreviate(sorted(names))}" for what, names in kinds.items() if names):
        raise InputError(f"the checkpoint at {place} does not fit its config: {wrong}")
    network.load_state_dict(dict(given), assign=True)


def read_tensors(folder: Path, files: Iterable[str]) -> dict[str, Tensor]:
    """Read the first weight file that exists. Raises InputError if none does, and for a pickle of more than tensors."""
    names = [OURS, *files]
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise InputError(f"no checkpoint at {folder}: expected one of {', '.join(names)}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        tensors: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        return tensors
    except UnpicklingError:
        raise InputError(f"{path}: holds more than plain tensors, which is never executed") from None
    except (SafetensorError, RuntimeError, EOFError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None


def find_folder(checkpoint: str) -> Path:
    """Return a checkpoint's folder, downloaded if it is a hub id (owner/name@revision). Raises InputError."""
    if (folder := find_local_folder(checkpoint)) is not None:
        return folder
    name, _, revision = checkpoint.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(f"no checkpoint at {checkpoint}: no such folder, and {str(error).splitlines()[0]}") from None


def read_config(path: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return config
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None


def write_checkpoint(network: DraftNetwork, folder: Path, file: str = OURS) -> None:
    """Write config.json and the weights (floats as float16) under one of the file names that `read_tensors` knows."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.cpu().clone().contiguous() for name, tensor in network.state_dict().items()}
    tensors = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    (folder / "config.json").write_text(json.dumps(network.config, indent=2) + "\n", encoding="utf-8")
    if file.endswith(".safetensors"):
        save_file(tensors, folder / file)
    else:
        torch.save(tensors, folder / file)
