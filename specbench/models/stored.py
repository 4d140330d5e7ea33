"""The tensors of a model's files by name and type: transformers casts whatever it finds there to the requested type."""

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from specbench.errors import InputError, abbreviate

PATTERNS = ("model*.safetensors", "pytorch_model*.bin")  # the first that a folder has is what transformers reads
FLOATS = ("F64", "F32", "F16", "BF16", "float64", "float32", "float16", "bfloat16")
MAGIC = b"GGUF"
POINTER = b"version https://git-lfs"
PLAIN = {"F64", "F32", "F16", "BF16"}  # of GGUF


def check_files(folder: Path) -> None:
    """Raise InputError for empty files of weights, for a folder with only GGUF, and for an unreadable index."""
    if (files := sorted(folder.glob("*.gguf"))) and not (folder / "config.json").exists():
        raise InputError(
            f"{folder}: expected config.json and model.safetensors, or the path of one GGUF file, such as {files[0]}"
        )
    for file in find_weights(folder):
        if file.is_file() and not file.stat().st_size:
            raise InputError(f"{file}: is empty")
        if file.suffix == ".safetensors" and file.is_file():
            _check_header(file)
    index = folder / "model.safetensors.index.json"
    if index.is_file() and not {"metadata", "weight_map"} <= json.loads(index.read_bytes()).keys():
        raise InputError(f'{index}: expected {{"metadata": {{…}}, "weight_map": {{tensor: file beside this one, …}}}}')


def _check_header(file: Path) -> None:
    """Raise InputError for a file without a header, or whose length is not what its header says."""
    with file.open("rb") as stream:
        if stream.read(len(POINTER)) == POINTER:
            raise InputError(f"{file}: is a Git LFS pointer; fetch the file itself: git lfs pull")
    try:
        with safe_open(file, framework="pt"):
            pass
    except SafetensorError as error:
        raise InputError(f"{file}: is damaged or incomplete: {error}") from None


@lru_cache(maxsize=1)  # a large vocabulary takes seconds to read
def check_gguf(file: Path) -> None:
    """Raise InputError for a file that does not begin as GGUF does, or that is cut off."""
    from gguf import GGUFReader

    with file.open("rb") as stream:
        if stream.read(len(MAGIC)) != MAGIC:
            raise InputError(f"{file}: is not a GGUF file")
    try:
        GGUFReader(file)
    except Exception as error:  # of any type: it trusts the file's sizes and offsets
        raise InputError(f"{file}: is damaged or incomplete ({type(error).__name__})") from None


def name_gguf_types(file: Path) -> str:
    """Return the types in which a GGUF file stores its weights, such as `Q4_1, Q6_K`; empty if all are plain floats."""
    from gguf import GGUFReader

    kinds = {tensor.tensor_type.name for tensor in GGUFReader(file).tensors}
    return ", ".join(sorted(kinds - PLAIN))


def check_stored_types(model: PreTrainedModel, folder: Path, place: str) -> None:
    """Raise InputError for files that hold numbers of the wrong type for a model's floating weights, such as integers."""
    floating = {name for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    prefix = f"{model.base_model_prefix}."
    wrong = [
        f"{name} is {kind}, expected a float of 16 to 64 bits"
        for file in find_weights(folder)
        for name, kind in _list_types(file)
        if kind not in FLOATS and (name in floating or prefix + name in floating)
    ]
    if wrong:
        raise InputError(f"the checkpoint at {place} does not match its config: of the wrong type: {abbreviate(sorted(wrong))}")


def find_weights(folder: Path) -> list[Path]:
    """Return the files that transformers reads a folder's weights from; none if it holds none."""
    found = (sorted(folder.glob(pattern)) for pattern in PATTERNS)
    return next((files for files in found if files), [])


def _list_types(file: Path) -> Iterator[tuple[str, str]]:
    """Yield name and type of each tensor of a file, without its numbers."""
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as tensors:
            yield from ((name, tensors.get_slice(name).get_dtype()) for name in tensors.keys())  # noqa: SIM118
        return
    stored: dict[str, Any] = torch.load(file, map_location="meta", weights_only=True)
    yield from ((name, str(tensor.dtype)[6:]) for name, tensor in stored.items() if isinstance(tensor, torch.Tensor))
