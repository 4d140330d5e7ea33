"""Spec-Bench's 480 questions (Xia et al., ACL 2024 Findings, arXiv 2401.07851): from a file or downloaded once.

Also other files of that schema, such as MT-bench's own.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import urllib.request
from http.client import HTTPException
from pathlib import Path

from specbench.errors import InputError
from tasks.jsonl import Jsonl
from tasks.question import read_file

REMEDY = "give the authors' question.jsonl as suite.path=FILE"
TIMEOUT = 30  # seconds without a byte


class SpecBench(Jsonl):
    """The file at `path`, else the one at `url`, cached in `cache_dir`. sha256=null accepts any content."""

    def __init__(self, path: str | None, url: str, sha256: str | None, cache_dir: str, name: str = "spec_bench") -> None:
        if path is None:
            path = str(download_once(url, sha256, Path(cache_dir).expanduser(), name))
        super().__init__(path, sha256, name=name)


def download_once(url: str, sha256: str | None, cache_dir: Path, name: str) -> Path:
    """Return the cached copy of `url`, downloaded if missing or damaged. Raises InputError: no network, wrong sha256."""
    file = cache_dir / f"{name}-{hashlib.sha256(url.encode()).hexdigest()[:12]}.jsonl"
    if file.is_file() and sha256 in (None, hashlib.sha256(read_file(file)).hexdigest()):
        return file
    data = _fetch(url)
    actual = hashlib.sha256(data).hexdigest()
    if sha256 not in (None, actual):
        raise InputError(f"{url}: sha256 is {actual}, expected {sha256}; {REMEDY}")
    _write(file, data)
    return file


def _fetch(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
            return bytes(response.read())
    except (OSError, HTTPException, ValueError) as error:
        raise InputError(f"{url}: cannot be downloaded ({error}); {REMEDY}") from None


def _write(file: Path, data: bytes) -> None:
    """Write by temporary name and rename: a reader sees the whole file or none."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".part", delete=False) as part:
            part.write(data)
        os.replace(part.name, file)
    except OSError as error:
        raise InputError(f"{file}: cannot be written ({error.strerror}); give suite.cache_dir=DIR, or {REMEDY}") from None
