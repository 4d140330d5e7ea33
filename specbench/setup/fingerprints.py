"""Fingerprints: of the code that writes a method's texts, and of the files that a model or a suite is read from.

A code's fingerprint is made of the syntax trees of its definitions, without docstrings, comments, imports and places. A comment,
a new line or a move of a function to another file leaves it alone; another constant or another name does not.
"""

import ast
import hashlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import resolve_name
from pathlib import Path
from types import ModuleType
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from hydra.utils import get_object

from specbench import ROOT
from specbench.models.load import find_local_folder

CODE_KIND = "definitions"  # what code fingerprints are made of; those of another kind cannot be compared
CONTENT = (".safetensors", ".bin", ".pt", ".json", ".jsonl", ".yaml", ".txt", ".model", ".jinja", ".tiktoken")
SHARED_CODE = (  # files and folders that the texts of every method depend on
    *("specbench/decoding", "specbench/drafters", "specbench/models", "specbench/engine/native.py"),
)


def hash_shared_code() -> str:
    """sha256 of the code that the texts of every method depend on."""
    places = [ROOT / place for place in SHARED_CODE]
    return hash_code(file for place in places for file in ([place] if place.is_file() else place.rglob("*.py")))


def hash_method_code(settings: Mapping[str, Any]) -> str:
    """sha256 of one method's own code: the modules of its YAML's classes, and those of methods/ that they import.

    A class from outside the repository counts with the modules of its own package.
    """
    waiting = [get_object(target).__module__ for target in _iter_targets(settings)]
    own = {"methods", *(name.partition(".")[0] for name in waiting)} - {"specbench"}
    found: dict[str, Path] = {}
    while waiting:
        name = waiting.pop()
        module = sys.modules.get(name)
        if name not in found and name.partition(".")[0] in own and module is not None and module.__file__:
            found[name] = Path(module.__file__)
            waiting += _iter_imports(module, found[name])
    return hash_code(found.values())


def hash_code(files: Iterable[Path]) -> str:
    """sha256 of all definitions in these files, whatever their order and whichever file they are in."""
    digests = sorted(digest for file in files for digest in _hash_definitions(file.read_text(encoding="utf-8")))
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _hash_definitions(source: str) -> Iterator[str]:
    for statement in ast.parse(source).body:
        if not _is_silent(statement):
            yield hashlib.sha256(repr(_canonicalise(statement)).encode()).hexdigest()


def _canonicalise(value: Any) -> Any:
    """A syntax tree as plain tuples; ast.dump differs from one version of Python to the next."""
    if isinstance(value, ast.AST):
        fields = ((name, _canonicalise(inner)) for name, inner in ast.iter_fields(value))
        return type(value).__name__, tuple((name, inner) for name, inner in fields if inner not in (None, ()))
    if isinstance(value, list):
        return tuple(_canonicalise(inner) for inner in value if not _is_silent(inner))
    return repr(value) if value is not None else None


def _is_silent(statement: Any) -> bool:
    """Whether it is an import or a docstring: what neither computes anything nor survives a move."""
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Constant) and isinstance(statement.value.value, str)
    return isinstance(statement, (ast.Import, ast.ImportFrom))


def _iter_targets(settings: Mapping[str, Any]) -> Iterator[str]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _iter_targets(value)
        elif key == "_target_":
            yield value


def _iter_imports(module: ModuleType, file: Path) -> Iterator[str]:
    """Names of the modules that a module's source imports, and of things in them that may be modules too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            name = resolve_name("." * node.level + (node.module or ""), module.__package__)
            yield from (name, *(f"{name}.{alias.name}" for alias in node.names))


def hash_path(path: str | Path, revision: str | None = None) -> str | None:
    """sha256 over the sorted names and contents of a folder, a file or a hub id's downloaded snapshot; None: not there.

    Of a folder: weights, configs and tokenizer files.
    """
    place = _find_place(str(path), revision)
    if place is None:
        return None
    files = [place] if place.is_file() else _list_contents(place)
    found = hashlib.sha256()
    for name, file in sorted((file.relative_to(place).as_posix(), file) for file in files):
        found.update(f"{name}\0{_hash_content(file)}\n".encode())
    return found.hexdigest()


def _find_place(path: str, revision: str | None) -> Path | None:
    if (folder := find_local_folder(path)) is not None:
        return folder
    if (file := next((file for file in (ROOT / path, Path(path).expanduser()) if file.is_file()), None)) is not None:
        return file
    try:
        cached = try_to_load_from_cache(path, "config.json", revision=revision)
    except HFValidationError:  # no hub id either
        return None
    return Path(cached).parent if isinstance(cached, str) else None


def _list_contents(place: Path) -> list[Path]:
    return [file for file in place.rglob("*") if file.is_file() and file.suffix in CONTENT]


def _hash_content(file: Path) -> str:
    """Of the bytes; the hub's cache already names large files by it, which spares reading them."""
    blob = file.resolve()
    if blob.parent.name == "blobs" and len(blob.name) == 64:
        return blob.name
    found = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            found.update(chunk)
    return found.hexdigest()
