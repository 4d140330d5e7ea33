"""Where a model is: in a folder, a GGUF file or an installed package that holds one, or on the hub.

A path is relative to the working directory, else to the checkout.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from transformers.utils.hub import cached_file

from specbench import ROOT
from specbench.errors import InputError
from specbench.models.refusals import check_settings, take_message
from specbench.models.stored import check_files, check_gguf, find_weights

GGUF = ".gguf"
PACKAGE = "package:"  # before the name of a package
ADAPTER = "adapter_config.json"
CONFIG = "config.json"


class Place(NamedTuple):
    """name: a folder or a hub id, as transformers takes it. gguf: the file in it that holds everything, if any."""

    name: str
    gguf: str | None = None

    @property
    def options(self) -> dict[str, str]:
        """The arguments of transformers' from_pretrained besides the name."""
        return {"gguf_file": self.gguf} if self.gguf else {}


def find_local_folder(path: str) -> Path | None:
    """Return the folder of a path; None for a hub id or a file."""
    return next((folder for folder in _list_candidates(path) if folder.is_dir()), None)


def find_local_file(path: str) -> Path | None:
    """Return the file of a path or package; None for a hub id or a folder."""
    return next((file for file in _list_candidates(path) if file.is_file()), None)


def locate(path: str) -> Place:
    """Return where a model is.

    Raises InputError for a path that does not exist and cannot be a hub id, and for broken settings.
    """
    if (folder := find_local_folder(path)) is not None:
        _check_adapter(path, folder)
        check_settings(folder)
        check_files(folder)
        return Place(str(folder))
    if path.endswith(GGUF) or path.startswith(PACKAGE):
        return _locate_gguf(path)
    if find_local_file(path) is not None:
        raise InputError(f"{path}: expected a folder, or a file that ends in {GGUF}")
    if path.count("/") > 1 or path.startswith((".", "~", "/")):
        raise InputError(f"no model at {path}: no such folder, and a hub id has the form owner/name")
    return Place(path)


def check_holds_model(path: str) -> None:
    """Raise InputError for a folder without a config or without weights."""
    if (folder := find_local_folder(path)) is None:
        return
    if not (folder / CONFIG).is_file() or not any(find_weights(folder)):
        raise InputError(f"no model at {path}: expected a folder with {CONFIG} and model.safetensors, whole or in shards")


def _check_adapter(path: str, folder: Path) -> None:
    """Raise InputError for a LoRA adapter, with or without a model: transformers applies it only if peft is installed."""
    if not (folder / ADAPTER).is_file():
        return
    if any(find_weights(folder)):
        raise InputError(f"{path}: holds a model and a LoRA adapter; merge them, or remove {ADAPTER} to run the model alone")
    raise InputError(f"{path}: holds a LoRA adapter without its model; merge it into the base model that its {ADAPTER} names")


def check_hub_id(place: Place, revision: str | None) -> None:
    """Raise InputError for the name of a model that is neither here nor on the hub, nor in its cache. Asks the hub once."""
    if Path(place.name).is_dir():
        return
    try:
        cached_file(place.name, CONFIG, revision=revision)
    except (OSError, ValueError) as error:
        where = "no such folder or file here, and it cannot be read from the hub"
        raise InputError(f"no model at {place.name}: {where}: {take_message(error)}") from None


def _locate_gguf(path: str) -> Place:
    file = find_local_file(path)
    if file is None and path.startswith(PACKAGE):
        raise InputError(f"{path}: no such package is installed, or it does not hold one {GGUF} file")
    if file is None:
        raise InputError(f"no model at {path}: no such file")
    if find_spec("gguf") is None:
        raise InputError(f"{path}: GGUF needs the package gguf: pip install -e '.[gguf]'")
    check_gguf(file)
    return Place(str(file.parent), file.name)


def _list_candidates(path: str) -> list[Path]:
    if path.startswith(PACKAGE):
        files = [file for folder in _find_package(path.removeprefix(PACKAGE)) for file in Path(folder).glob(f"*{GGUF}")]
        return files if len(files) == 1 else []
    return [Path(path).expanduser(), ROOT / path]


def _find_package(name: str) -> list[str]:
    """Return the folders of an installed package; empty if there is no such package."""
    try:
        found = find_spec(name)
    except (ImportError, ValueError):
        return []
    return list((found and found.submodule_search_locations) or ())
