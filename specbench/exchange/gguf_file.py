"""Write a Llama as a GGUF file, and verify it by reading it back before it gets its final name. Needs the package gguf."""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from specbench.decoding.language_model import LanguageModel
from specbench.errors import InputError, abbreviate
from specbench.exchange.gguf_layout import OUTPUT_BIAS, GgufTensor, Setting, check_model, list_settings, list_tensors
from specbench.exchange.gguf_vocabulary import read_vocabulary

BITS = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}


@dataclass(frozen=True)
class GgufExport:
    """A file that has been written and read back. biased: the model's bias on its output is not in it."""

    path: Path
    weights: int
    size: int
    dtype: str
    splits_alike: bool
    biased: bool

    @property
    def lines(self) -> list[str]:
        """The lines to print: the file, and what to know about it."""
        size = f"{self.weights / 1e6:,.1f} M weights, {self.dtype}, {self.size / 1e6:,.1f} MB"
        notes = {
            "without the bias on its output: speed only, texts may differ": self.biased,
            "llama.cpp may split a text into other tokens than specbench: send it token ids": not self.splits_alike,
        }
        return [f"gguf: {self.path}: {size}; read back, equal bit for bit", *(note for note, holds in notes.items() if holds)]


def check_path(out: str | None) -> Path:
    """Return the file to write. Raises InputError for another suffix than .gguf and for a file that exists."""
    if out is None:
        raise InputError("out=null: expected a file, such as out=exports/mini.gguf")
    path = Path(out).expanduser()
    if path.suffix != ".gguf":
        raise InputError(f"out={out}: expected a name that ends in .gguf")
    if os.path.lexists(path):
        raise InputError(f"out={out}: already exists; choose another file")
    return path


def import_gguf() -> Any:
    """Return the package. Raises InputError if it is not installed."""
    try:
        return import_module("gguf")
    except ImportError:
        raise InputError("the package gguf is not installed; pip install -e '.[gguf]' adds it") from None


def export_gguf(
    loaded: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    path: Path,
    output_bias: bool = True,
    dtype: torch.dtype | None = None,
) -> GgufExport:
    """Write the weights as they are loaded, vectors in float32, and the tokenizer.

    dtype: of matrices; by default that in which they are loaded. output_bias: refuse a model with a bias on its output instead of
    leaving the bias out. Raises InputError for what GGUF cannot hold, and, without leaving a file, for one that reads back as
    something else.
    """
    gguf, model, kind = import_gguf(), loaded.model, dtype or loaded.dtype
    check_model(model, output_bias)
    vocabulary = read_vocabulary(tokenizer, loaded.vocabulary, loaded.eos_ids)
    settings = [*list_settings(model, name, kind), *vocabulary.settings]
    tensors = list(list_tensors(model, kind))
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        _write(gguf, Path(temporary), settings, tensors)
        if wrong := find_differences(Path(temporary), settings, tensors):
            raise InputError(f"{path}: not written: read back, it differs in {abbreviate(wrong)}")
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    weights = sum(item.tensor.numel() for item in tensors)
    biased = OUTPUT_BIAS in model.state_dict()
    return GgufExport(path, weights, path.stat().st_size, str(kind).removeprefix("torch."), vocabulary.splits_alike, biased)


def _write(gguf: Any, path: Path, settings: Sequence[Setting], tensors: Sequence[GgufTensor]) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    for kind, key, value in settings:
        getattr(writer, f"add_{kind}")(key, value)
    kinds = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    for item in tensors:
        stored = item.stored.contiguous()
        kind = gguf.GGMLQuantizationType[kinds[stored.dtype]]
        writer.add_tensor(item.name, stored.view(torch.uint8).numpy(), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    for file in writer.fout:
        file.flush()
        os.fsync(file.fileno())
    writer.close()


def find_differences(path: Path, settings: Sequence[Setting], tensors: Sequence[GgufTensor]) -> list[str]:
    """Return the keys and names in which a file differs from what it should hold, tensors bit by bit."""
    reader = import_gguf().GGUFReader(path)
    wrong = [key for kind, key, value in settings if key not in reader.fields or _read(reader, key) != _round(kind, value)]
    found = {stored.name: stored for stored in reader.tensors}
    wrong += [item.name for item in tensors if item.name not in found or not _is_same(found[item.name], item)]
    return wrong + sorted(found.keys() - {item.name for item in tensors})


def _read(reader: Any, key: str) -> Any:
    return reader.fields[key].contents()


def _round(kind: str, value: Any) -> Any:
    return float(np.float32(value)) if kind == "float32" else value


def _is_same(stored: Any, item: GgufTensor) -> bool:
    """Return whether a tensor of the file has the model's shape and bits, once its rows are back in transformers' order."""
    expected = item.tensor.detach().cpu()
    kind = torch.float32 if expected.ndim == 1 else expected.dtype
    name = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}.get(stored.tensor_type.name)
    if name is not kind or tuple(stored.shape[::-1]) != tuple(expected.shape):
        return False
    found = torch.from_numpy(np.array(stored.data).view(np.uint8)).view(kind).view(expected.shape)
    return torch.equal(item.restore(found).view(BITS[kind]), expected.to(kind).contiguous().view(BITS[kind]))
