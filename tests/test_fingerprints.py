"""What a fingerprint follows, and what leaves it as it is."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from specbench.setup import fingerprints
from specbench.setup.fingerprints import hash_code, hash_path

CODE = '''"""A module."""

import math

LIMIT = 3


def area(radius: float) -> float:
    """Square metres."""
    return math.pi * radius**2  # of a circle


class Box:
    """Holds something."""

    sides = 6
'''


def _digest(folder: Path, *sources: str) -> str:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for number, source in enumerate(sources):
        (folder / f"{number}.py").write_text(source)
    return hash_code(folder.glob("*.py"))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""A module."""\n', '"""Another one,\nlonger."""\n'),
        ("  # of a circle", ""),
        ('    """Square metres."""\n', ""),
        ('    """Holds something."""\n', ""),
        ("import math\n", "import math\nimport specbench.errors\n"),
        ("LIMIT = 3\n", "\n\nLIMIT = (\n    3\n)\n"),
    ],
)
def test_words_imports_and_layout_leave_a_codes_fingerprint_as_it_is(tmp_path: Path, old: str, new: str) -> None:
    assert old in CODE
    assert _digest(tmp_path / "code", CODE) == _digest(tmp_path / "code", CODE.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new"), [("LIMIT = 3", "LIMIT = 4"), ("radius**2", "radius**3"), ("sides", "faces"), ("math.pi", "math.e")]
)
def test_a_codes_fingerprint_follows_what_it_does(tmp_path: Path, old: str, new: str) -> None:
    assert _digest(tmp_path / "code", CODE) != _digest(tmp_path / "code", CODE.replace(old, new))


def test_a_move_to_another_file_leaves_a_codes_fingerprint_as_it_is(tmp_path: Path) -> None:
    head, box = CODE.split("class Box")
    assert _digest(tmp_path / "code", CODE) == _digest(tmp_path / "code", f"class Box{box}", head)
    assert _digest(tmp_path / "code", CODE) != _digest(tmp_path / "code", head), "a definition is missing"


def test_fingerprint_follows_names_and_contents_alone(tmp_path: Path) -> None:
    def folder(name: str, **files: str) -> Path:
        (tmp_path / name).mkdir()
        for file, content in files.items():
            (tmp_path / name / file.replace("_", ".")).write_text(content)
        return tmp_path / name

    first = hash_path(folder("one", config_json="{}", model_safetensors="weights"))
    assert first == hash_path(folder("two", model_safetensors="weights", config_json="{}", notes_md="read me"))
    assert first != hash_path(folder("three", config_json="{}", model_safetensors="others"))
    assert first != hash_path(folder("four", settings_json="{}", model_safetensors="weights"))


def test_fingerprint_of_a_hub_snapshot_is_that_of_its_contents(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "model.safetensors").write_bytes(b"weights")
    blob = tmp_path / "blobs" / fingerprints._hash_content(tmp_path / "plain" / "model.safetensors")
    blob.parent.mkdir()
    blob.write_bytes(b"weights")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "model.safetensors").symlink_to(blob)
    assert hash_path(tmp_path / "snapshot") == hash_path(tmp_path / "plain")


def test_a_methods_code_is_that_of_its_classes_and_of_what_they_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    eagle, pld = {"_target_": "methods.eagle.Eagle"}, {"_target_": "methods.pld.PromptLookup"}
    both = {"_target_": "methods.fallback.Fallback", "first": pld, "then": {"deeper": eagle}}
    assert len({fingerprints.hash_method_code(one) for one in (eagle, pld, both, both | {"then": pld})}) == 4
    package = tmp_path / "outside"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "words.py").write_text("WORDS = [1]\n")
    (package / "method.py").write_text("from methods.pld import PromptLookup\nfrom .words import WORDS\nimport torch\n")
    (package / "method.py").open("a").write("class Mine(PromptLookup):\n    pass\n")

    def code() -> str:
        for name in [name for name in sys.modules if name.startswith("outside")]:
            del sys.modules[name]
        shutil.rmtree(package / "__pycache__", ignore_errors=True)
        return fingerprints.hash_method_code({"_target_": "outside.method.Mine"})

    monkeypatch.syspath_prepend(tmp_path)
    first = code()
    assert first == code() != fingerprints.hash_method_code(pld)
    (package / "another.py").write_text("a new file that nothing imports")
    assert first == code()
    (package / "words.py").write_text("WORDS = [2]\n")
    assert first != code()


def test_nothing_there_has_no_fingerprint(tmp_path: Path) -> None:
    assert hash_path(tmp_path / "nothing") is None
    assert hash_path("nobody/has-this-model") is None
