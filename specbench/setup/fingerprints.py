"""Fingerprints of the code that decides a method's texts, and of the files that a model or a suite is read from.

The fingerprint of code covers the syntax trees of its definitions, without docstrings, comments, imports and positions. A new
comment or line, or moving a function to another file, does not change it; another constant or name does.
"""

import ast
import hashlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib import util
from pathlib import Path
from types import ModuleType
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from specbench import ROOT
from specbench.models.place import find_local_file, find_local_folder
from specbench.setup.instantiate import iter_nodes, locate_class

CODE_KIND = "definitions"  # what fingerprints of code cover; those of different kinds cannot be compared
CONTENT = (".safetensors", ".bin", ".pt", ".json", ".jsonl", ".yaml", ".txt", ".model", ".jinja", ".tiktoken")
SHARED_CODE = ("specbench/decoding", "specbench/drafters", "specbench/models", "specbench/engine/native.py")


def hash_shared_code() -> str:
    """Return the sha256 of the code that the texts of every method depend on."""
    places = [ROOT / place for place in SHARED_CODE]
    return hash_code(file for place in places for file in ([place] if place.is_file() else place.rglob("*.py")))


def hash_method_code(settings: Mapping[str, Any]) -> str:
    """Return the sha256 of one method's own code: the modules of its YAML's classes, and those of methods/ that they import.

    For a class from outside the repository, the modules of its own package count too.
    """
    waiting = [locate_class(node).__module__ for node in iter_nodes(settings)]
    packages = {"methods", *(name.partition(".")[0] for name in waiting)} - {"specbench"}
    files: dict[str, Path] = {}
    while waiting:
        name = waiting.pop()
        module = sys.modules.get(name)
        if name not in files and name.partition(".")[0] in packages and module is not None and module.__file__:
            files[name] = Path(module.__file__)
            waiting += _iter_imports(module, files[name])
    return hash_code(files.values())


def hash_code(files: Iterable[Path]) -> str:
    """Return the sha256 of all definitions in these files, whatever their order and whichever file holds them."""
    statements = (statement for file in files for statement in ast.parse(file.read_text(encoding="utf-8")).body)
    definitions = (repr(_canonicalise(statement)) for statement in statements if not _is_silent(statement))
    digests = sorted(hashlib.sha256(definition.encode()).hexdigest() for definition in definitions)
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _canonicalise(value: Any) -> Any:
    """Return a syntax tree as plain tuples; the output of ast.dump depends on the version of Python."""
    if isinstance(value, ast.AST):
        fields = ((name, _canonicalise(inner)) for name, inner in ast.iter_fields(value))
        return type(value).__name__, tuple((name, inner) for name, inner in fields if inner not in (None, ()))
    if isinstance(value, list):
        return tuple(_canonicalise(inner) for inner in value if not _is_silent(inner))
    return repr(value) if value is not None else None


def _is_silent(statement: Any) -> bool:
    """Return whether it is an import or a docstring, which a fingerprint leaves out."""
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Constant) and isinstance(statement.value.value, str)
    return isinstance(statement, (ast.Import, ast.ImportFrom))


def _iter_imports(module: ModuleType, file: Path) -> Iterator[str]:
    """Yield the modules that a module's source imports, and the names imported from them, which may be modules too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            name = util.resolve_name("." * node.level + (node.module or ""), module.__package__)
            yield from (name, *(f"{name}.{alias.name}" for alias in node.names))


def hash_path(path: str | Path, revision: str | None = None) -> str | None:
    """Return the sha256 of the names and contents of a folder, a file or a hub id's local snapshot; None if it does not exist.

    In a folder, only weights, configs, texts and tokenizer files count.
    """
    place = _find_place(str(path), revision)
    if place is None:
        return None
    files = [place] if place.is_file() else [file for file in place.rglob("*") if file.is_file() and file.suffix in CONTENT]
    digest = hashlib.sha256()
    for name, file in sorted((file.relative_to(place).as_posix(), file) for file in files):
        digest.update(f"{name}\0{_hash_content(file)}\n".encode())
    return digest.hexdigest()


def _find_place(path: str, revision: str | None) -> Path | None:
    if local := find_local_folder(path) or find_local_file(path):
        return local
    try:
        cached = try_to_load_from_cache(path, "config.json", revision=revision)
    except HFValidationError:  # no hub id either
        return None
    return Path(cached).parent if isinstance(cached, str) else None


def _hash_content(file: Path) -> str:
    """Return the sha256 of a file's bytes. The hub's cache names large files by it, so that they need not be read."""
    blob = file.resolve()
    if blob.parent.name == "blobs" and len(blob.name) == 64:
        return blob.name
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
