"""python -m benchmarks.restamp: give stored certificates and runs of this very code its new kind of fingerprint.

Until now a fingerprint was made of the bytes of files. Whatever holds today's fingerprint of that kind holds today's of the new
kind afterwards; everything else stays as it is.
"""

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from hydra.utils import get_object

from specbench import ROOT
from specbench.fingerprints import _imported_names, _targets, method_code, shared_code
from specbench.records import write_atomic

REFERENCE = ROOT / "results" / "reference"


def main() -> None:
    for path in sorted(REFERENCE.rglob("certificate.json")):
        plain = json.loads(path.read_text(encoding="utf-8"))
        if restamped(plain["about"], plain["config"]):
            write_atomic(path, json.dumps(plain, indent=1, allow_nan=False) + "\n")
            print(path.relative_to(ROOT))
    for path in sorted(REFERENCE.rglob("run.json")):
        about, config = json.loads(path.read_text(encoding="utf-8")), yaml.safe_load((path.parent / "config.yaml").read_text())
        if restamped(about, config):
            write_atomic(path, json.dumps(about, indent=2, ensure_ascii=False) + "\n")
            print(path.relative_to(ROOT))


def restamped(about: dict[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether it was made by today's code, and now says so in the new way."""
    if about.get("code_sha256") != _bytes_of_folders():
        return False
    about["code_sha256"] = shared_code()
    for label, digest in about["codes"].items():
        if digest == _bytes_of_method(config["method"][label]):
            about["codes"][label] = method_code(config["method"][label])
    return True


def _bytes_of_folders() -> str:
    files = [file for folder in ("decoding", "engine") for file in (ROOT / "specbench" / folder).rglob("*.py")]
    return _sha256((file.relative_to(ROOT).as_posix(), file) for file in files)


def _bytes_of_method(settings: Mapping[str, Any]) -> str:
    waiting = [get_object(target).__module__ for target in _targets(settings)]
    found: dict[str, Path] = {}
    while waiting:
        name = waiting.pop()
        if name not in found and name.partition(".")[0] == "methods" and name in sys.modules and sys.modules[name].__file__:
            found[name] = Path(str(sys.modules[name].__file__))
            waiting += _imported_names(sys.modules[name], found[name])
    return _sha256(found.items())


def _sha256(files: Iterable[tuple[str, Path]]) -> str:
    found = hashlib.sha256()
    for name, file in sorted(files):
        found.update(f"{name}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return found.hexdigest()


if __name__ == "__main__":
    main()
