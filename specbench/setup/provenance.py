"""Where numbers come from: versions, machine, device, commit and fingerprints, for run.json.

No user, host or folder of this machine enters: only names of products, versions, sizes and hashes.
"""

import platform
import subprocess
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from specbench import ROOT
from specbench.machine.devices import cpu_capabilities, cpu_name, device_name, has_bf16_units, memory_bytes, usable_cores
from specbench.machine.nvml import GRAPHICS, MEMORY, SM, ask, find_card
from specbench.setup.fingerprints import shared_code

PACKAGES = ("specbench", "torch", "transformers", "datasets", "numpy")
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
        "code_sha256": shared_code(),
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


def _output(command: Sequence[str]) -> str | None:
    """What a command prints, stripped; None when it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
