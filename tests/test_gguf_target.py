"""A GGUF file as a target: dequantised by transformers, and said so."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from specbench.errors import InputError
from specbench.models.load import check_model, load_model, load_tokenizer
from specbench.models.place import locate
from specbench.models.stored import name_gguf_types
from specbench.setup.fingerprints import hash_path
from tests.conftest import Cli
from tests.test_gguf import build, compute_logits, gguf, write


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path, build()).path


def test_a_file_is_loaded_as_the_model_that_was_written(file: Path) -> None:
    loaded = load_model(str(file), dtype="float32", device="cpu", packed=False)
    with build().use_original_attention() as expected, loaded.use_original_attention() as found:
        assert torch.equal(compute_logits(found), compute_logits(expected))
    assert load_tokenizer(str(file), None, False)("3 apples").input_ids
    assert hash_path(file)


def test_a_quantised_file_runs_dequantised(file: Path, tmp_path: Path) -> None:
    quantised = quantise(file, tmp_path / "small.gguf")
    loaded = load_model(str(quantised), dtype="float32", device="cpu", packed=False)
    with build().use_original_attention() as expected, loaded.use_original_attention() as found:
        right, close = compute_logits(expected), compute_logits(found)
    assert not torch.equal(close, right)
    assert (close - right).std() < 0.1 * right.std()
    assert name_gguf_types(quantised) == "Q8_0"
    assert not name_gguf_types(file)


def quantise(file: Path, out: Path) -> Path:
    """Write the file again with matrices in 8 bits."""
    reader, writer = gguf.GGUFReader(file), gguf.GGUFWriter(out, "llama")
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name not in ("general.architecture", "general.file_type"):
            kind, sub = field.types[0], field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), kind, sub)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    for tensor in reader.tensors:
        rows = len(tensor.shape) > 1 and tensor.shape[0] % 32 == 0  # whole blocks
        eight = gguf.GGMLQuantizationType.Q8_0 if rows else gguf.GGMLQuantizationType.F32
        writer.add_tensor(tensor.name, gguf.quantize(tensor.data, eight), raw_dtype=eight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def test_a_run_names_the_file_and_says_that_it_is_dequantised(file: Path, cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "run"
    small = ["limit=1", "repeats=1", "task=[qa]", "sampling.max_new_tokens=4", "check_baseline=false", "target.format=plain"]
    paths = [f"target.path={quantise(file, tmp_path / 'small.gguf')}", "target.dtype=float32"]
    said = cli("run", *paths, *small, f"out={out}")
    assert "stored quantised (Q8_0) and run as float32, not quantised" in " ".join(said.out.split())
    assert yaml.safe_load((out / "config.yaml").read_text(encoding="utf-8"))["target"]["name"] == "small"


@pytest.mark.parametrize("content", [b"", b"GGU", b"not a model"])
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(InputError, match=r"x.gguf: is not a GGUF file"):
        load_tokenizer(str(tmp_path / "x.gguf"), None, False)


def test_a_damaged_file_is_one_line(file: Path) -> None:
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="tiny.gguf"):
        load_model(str(file), dtype="float32", device="cpu")


def test_without_the_package_it_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Any = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("specbench.models.place.find_spec", lambda name: None if name == "gguf" else real(name))
    with pytest.raises(InputError, match="GGUF needs the package gguf"):
        check_model(str(file))


def test_a_missing_file_and_a_folder_of_files_are_named(file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        check_model(str(tmp_path / "other.gguf"))
    with pytest.raises(InputError, match=r"the path of one GGUF file, such as .*tiny.gguf"):
        check_model(str(tmp_path))


def test_a_file_is_saved_once_as_a_folder(file: Path, cli: Cli, tmp_path: Path) -> None:
    quantised, folder = quantise(file, tmp_path / "small.gguf"), tmp_path / "plain"
    given = ["export", "folder", f"target.path={quantised}", "target.dtype=float32", "target.device=cpu", f"out={folder}"]
    assert cli(*given).status == 0
    sides = [load_model(str(path), dtype="float32", device="cpu", packed=False) for path in (quantised, folder)]
    first, second = (side.model.state_dict() for side in sides)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    tokens = [load_tokenizer(str(path), None, False)("3 apples").input_ids for path in (quantised, folder)]
    assert tokens[0] == tokens[1]
    assert "already exists" in cli(*given).err and "expected a folder" in cli(*given[:-1]).err


def test_a_package_may_hold_the_file(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "tiny_weights"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        InputError, match="package:tiny_weights: no such package is installed, or it does not hold one .gguf file"
    ):
        locate("package:tiny_weights")
    held = file.rename(package / "tiny.gguf")
    assert locate("package:tiny_weights") == (str(package), "tiny.gguf")
    assert hash_path("package:tiny_weights") == hash_path(held)
    with pytest.raises(InputError, match="no such package is installed"):
        locate("package:no_such_weights")
