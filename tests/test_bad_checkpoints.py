"""Files of a target that hold something, but no model that can be run: one line that names the file and what is missing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from specbench.bounds import MOST_LAYERS, find_depth
from specbench.errors import InputError
from specbench.models.load import load_model, load_tokenizer
from tests.conftest import Refuse, Tiny, tensors


@pytest.fixture
def folder(tiny: Tiny, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny.target, tmp_path / "copy"))


def load(folder: Path, dtype: str = "float32") -> None:
    load_model(str(folder), dtype=dtype, device="cpu")


def change_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize("name", ["model.norm.weight", "lm_head.weight"])
@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn], ids=str)
def test_numbers_of_another_kind_are_not_cast(name: str, kind: torch.dtype, folder: Path) -> None:
    tensors(folder, lambda weights: weights.update({name: weights[name].to(kind)}))
    with pytest.raises(InputError, match=f"does not match its config: of the wrong type: {name} is .*, expected a float"):
        load(folder)


def test_numbers_of_another_kind_in_a_bin(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    load(folder)
    torch.save({**weights, "model.norm.weight": torch.ones(32, dtype=torch.int8)}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"of the wrong type: model\.norm\.weight is int8"):
        load(folder)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_floats_of_another_width_are_cast(dtype: str, folder: Path) -> None:
    tensors(folder, lambda weights: weights.update({name: weights[name].to(getattr(torch, dtype)) for name in weights}))
    load(folder)


def test_plain_weights_that_are_said_to_be_quantised(folder: Path) -> None:
    tensors(folder, lambda weights: weights.update({name: weights[name].half() for name in weights}))
    change_config(folder, quantization_config={"quant_method": "fp8"})
    with pytest.raises(InputError, match="quantization_config: transformers loads its plain layers as float16, not the float32"):
        load(folder)


def write_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../a"}}')


def write_gguf(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "model.gguf").write_bytes(b"GGUF")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "model.safetensors: is empty"),
        (write_index, 'model.safetensors.index.json: expected {"metadata": '),
        (write_gguf, "expected config.json and model.safetensors, or the path of one GGUF file"),
        (
            lambda folder: change_config(folder, num_hidden_layers=200_000),
            "config.json: num_hidden_layers=200000: expected at most",
        ),
    ],
)
def test_files_that_are_no_model(spoil: Callable[[Path], Any], said: str, folder: Path) -> None:
    spoil(folder)
    with pytest.raises(InputError) as error:
        load(folder)
    assert said in str(error.value)


def test_a_file_of_gguf(folder: Path) -> None:
    with pytest.raises(InputError, match="no model at .*model.gguf: no such file"):
        load(folder / "model.gguf")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_attention_heads": 0}, "ZeroDivisionError"),
        ({"rms_norm_eps": "x"}, "rms_norm_eps"),
        ({"dtype": "float17"}, "float17"),
    ],
)
def test_a_config_that_breaks_is_not_blamed_on_the_tokenizer(changes: dict[str, Any], said: str, folder: Path) -> None:
    change_config(folder, **changes)
    with pytest.raises(InputError, match=f"copy/config.json: .*{said}"):
        load_tokenizer(str(folder), None, False)


def test_a_folder_without_a_tokenizer_says_which_files_it_lacks(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(InputError, match="no tokenizer at .*: expected a folder with one of tokenizer.json, tokenizer.model"):
        load_tokenizer(str(folder), None, False)


@pytest.mark.full
def test_an_empty_path(refuse: Refuse, tiny: Tiny) -> None:
    said = refuse("run", *tiny.overrides("task=qa", "method=[]", "out=results/x", "target.path=''"))
    assert "path='': expected a hub id or a folder" in said


def test_what_counts_layers_by_any_name_is_bounded() -> None:
    most = MOST_LAYERS + 1
    assert find_depth({"n_layer": most}) == f"n_layer={most}"
    assert find_depth({"text_config": {"num_layers": most}}) == f"text_config.num_layers={most}"
    assert find_depth({"num_hidden_layers": MOST_LAYERS, "vocab_size": 10**6}) is None and find_depth(None) is None


def test_weights_that_do_not_fit_the_memory_are_blamed_on_their_config() -> None:
    config = {"model_type": "llama", "hidden_size": 10**9, "num_hidden_layers": 2}
    with pytest.raises(InputError, match="^config: its model does not fit in the memory of cpu"):
        load_model(None, weights="random", config=config, dtype="float32", device="cpu")
