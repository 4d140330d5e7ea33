"""Where numbers come from: versions, machine, device, commit and fingerprints, for run.json.

No user, host or folder of this machine enters: only names of products, versions, sizes and hashes.
"""

import ast
import hashlib
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from importlib.util import resolve_name
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from hydra.utils import get_object

from specbench import ROOT
from specbench.devices import cpu_capabilities, cpu_name, device_name, has_bf16_units, memory_bytes, usable_cores
from specbench.models import local_folder
from specbench.nvml import GRAPHICS, MEMORY, SM, ask, find_card

PACKAGES = ("specbench", "torch", "transformers", "datasets", "numpy")
CONTENT = (".safetensors", ".bin", ".pt", ".json", ".jsonl", ".yaml", ".txt", ".model", ".jinja", ".tiktoken")
DECIDING = ("specbench/decoding", "specbench/engine")  # folders whose code writes the texts of every method
MODES = ("Disabled", "Enabled")
CLOCKS: dict[str, tuple[str, Sequence[int], Callable[[Any], Any]]] = {  # by nvidia-smi's names, in MHz and W
    "clocks.sm": ("nvmlDeviceGetClockInfo", (SM,), int),
    "clocks.mem": ("nvmlDeviceGetClockInfo", (MEMORY,), int),
    "clocks.max.sm": ("nvmlDeviceGetMaxClockInfo", (SM,), int),
    "clocks.max.mem": ("nvmlDeviceGetMaxClockInfo", (MEMORY,), int),
    "clocks.applications.graphics": ("nvmlDeviceGetApplicationsClock", (GRAPHICS,), int),
    "power.limit": ("nvmlDeviceGetPowerManagementLimit", (), lambda milliwatts: milliwatts / 1e3),
    "power.max_limit": ("nvmlDeviceGetPowerManagementLimitConstraints", (), lambda limits: limits[1] / 1e3),
    "persistence_mode": ("nvmlDeviceGetPersistenceMode", (), lambda mode: MODES[mode]),
    "mig.mode.current": ("nvmlDeviceGetMigMode", (), lambda modes: MODES[modes[0]]),
}


def provenance(device: torch.device) -> dict[str, Any]:
    """What run.json says of the place and the time, JSON-able; settings and fingerprints are the caller's to add."""
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "device": _device(device),
        "machine": _machine(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "git": _git(),
        "code_sha256": _code(),
    }


def _version(package: str) -> str | None:
    """The installed version; specbench itself, run from a clone that is not installed, has none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _machine() -> dict[str, Any]:
    capabilities = {name: value for name, value in cpu_capabilities().items() if isinstance(value, bool)}
    return {
        "os": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "bf16_units": has_bf16_units(),
        "instructions": sorted(name for name, there in capabilities.items() if there),
        "memory_bytes": memory_bytes(),
    }


def _device(device: torch.device) -> dict[str, Any]:
    about: dict[str, Any] = {"kind": device.type, "name": device_name(device)}
    if device.type != "cuda":
        return about
    card = torch.cuda.get_device_properties(device)
    return about | {
        "count": torch.cuda.device_count(),
        "memory_bytes": card.total_memory,
        "multiprocessors": card.multi_processor_count,
        "capability": f"{card.major}.{card.minor}",
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        **_nvidia(device),
    }


def _nvidia(device: torch.device) -> dict[str, Any]:
    """Driver, clocks and power limits of one card, None what it does not know; empty without NVIDIA's driver."""
    card = find_card(device)
    if card is None:
        return {}
    clocks = {name: _setting(card, *asked) for name, asked in CLOCKS.items()}
    return {"driver": ask("nvmlSystemGetDriverVersion"), "clocks": clocks}


def _setting(card: Any, question: str, kinds: Sequence[int], converted: Callable[[Any], Any]) -> Any:
    answer = ask(question, card, *kinds)
    return None if answer is None else converted(answer)


def _git() -> dict[str, Any] | None:
    """Commit and whether anything differs from it; None where the code is no checkout of its own."""
    git = ["git", "--no-optional-locks", "-C", str(ROOT)]
    top = _output([*git, "rev-parse", "--show-toplevel"])
    if top is None or Path(top).resolve() != ROOT.resolve():
        return None
    return {
        "commit": _output([*git, "rev-parse", "--verify", "--quiet", "HEAD"]),
        "dirty": bool(_output([*git, "status", "--porcelain"])),
    }


def _code() -> str:
    """sha256 over what decides on every text: the loop and the engines."""
    files = (file for folder in DECIDING for file in (ROOT / folder).rglob("*.py"))
    return _sha256({file.relative_to(ROOT).as_posix(): file for file in files})


def method_code(settings: Mapping[str, Any]) -> str:
    """sha256 over what decides on one method's text: the modules of its YAML's classes, and those of methods/ that they import.

    Classes from outside the repository count with the modules of their own package.
    """
    waiting = [get_object(target).__module__ for target in _targets(settings)]
    own = {"methods", *(name.partition(".")[0] for name in waiting)} - {"specbench"}
    found: dict[str, Path] = {}
    while waiting:
        name = waiting.pop()
        module = sys.modules.get(name)
        if name not in found and name.partition(".")[0] in own and module is not None and module.__file__:
            found[name] = Path(module.__file__)
            waiting += _imported(module, found[name])
    return _sha256(found)


def _targets(settings: Mapping[str, Any]) -> Iterator[str]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _targets(value)
        elif key == "_target_":
            yield value


def _imported(module: ModuleType, file: Path) -> Iterator[str]:
    """Names of the modules that a module's source imports, and of things in them that may be modules too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            name = resolve_name("." * node.level + (node.module or ""), module.__package__)
            yield from (name, *(f"{name}.{alias.name}" for alias in node.names))


def _sha256(files: Mapping[str, Path]) -> str:
    """Over sorted names and contents."""
    found = hashlib.sha256()
    for name in sorted(files):
        found.update(f"{name}\0{_content_sha256(files[name])}\n".encode())
    return found.hexdigest()


def _output(command: Sequence[str]) -> str | None:
    """What a command prints, stripped; None when it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def fingerprint(path: str | Path, revision: str | None = None) -> str | None:
    """sha256 over the sorted names and contents of a folder, a file or a hub id's downloaded snapshot; None: not there.

    Of a folder: weights, configs and tokenizer files.
    """
    place = _place(str(path), revision)
    if place is None:
        return None
    return _sha256({file.relative_to(place).as_posix(): file for file in ([place] if place.is_file() else _contents(place))})


def _place(path: str, revision: str | None) -> Path | None:
    if (folder := local_folder(path)) is not None:
        return folder
    if (file := next((file for file in (ROOT / path, Path(path).expanduser()) if file.is_file()), None)) is not None:
        return file
    try:
        cached = try_to_load_from_cache(path, "config.json", revision=revision)
    except HFValidationError:  # no hub id either
        return None
    return Path(cached).parent if isinstance(cached, str) else None


def _contents(place: Path) -> list[Path]:
    return [file for file in place.rglob("*") if file.is_file() and file.suffix in CONTENT]


def _content_sha256(file: Path) -> str:
    """Of the bytes; the hub's cache already names large files by it, which spares reading them."""
    blob = file.resolve()
    if blob.parent.name == "blobs" and len(blob.name) == 64:
        return blob.name
    found = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            found.update(chunk)
    return found.hexdigest()
