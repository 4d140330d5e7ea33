"""Where numbers come from, for run.json: versions, machine, device, commit and the hash of the code.

It holds names of products, versions, sizes and hashes, but no name of a user, a host or a folder.
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
from specbench.machine import devices
from specbench.machine.nvml import GRAPHICS, MEMORY, SM, ask, find_gpu
from specbench.setup.fingerprints import hash_shared_code

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


def collect_provenance(device: torch.device) -> dict[str, Any]:
    """Return run.json's facts about place and time; the caller adds settings and fingerprints."""
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "device": _describe_device(device),
        "machine": _describe_machine(),
        "versions": {"python": platform.python_version(), **{name: _get_version(name) for name in PACKAGES}},
        "git": _describe_git(),
        "code_sha256": hash_shared_code(),
    }


def list_attention_kernels() -> list[str]:
    """Return the kernels that scaled_dot_product_attention may choose from on CUDA."""
    cuda: Any = torch.backends.cuda
    allowed = {
        "flash": cuda.flash_sdp_enabled,
        "memory-efficient": cuda.mem_efficient_sdp_enabled,
        "cuDNN": cuda.cudnn_sdp_enabled,
        "mathematical": cuda.math_sdp_enabled,
    }
    return [name for name, is_on in allowed.items() if is_on()]


def _get_version(package: str) -> str | None:
    """Return the installed version; None for specbench itself in a clone that is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _describe_machine() -> dict[str, Any]:
    capabilities = {name: value for name, value in devices.get_cpu_capabilities().items() if isinstance(value, bool)}
    return {
        "os": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "cpu": devices.get_cpu_name(),
        "cores": devices.count_usable_cores(),
        "threads": torch.get_num_threads(),
        "bf16_units": devices.has_bf16_units(),
        "instructions": sorted(name for name, supported in capabilities.items() if supported),
        "memory_bytes": devices.get_total_memory(),
    }


def _describe_device(device: torch.device) -> dict[str, Any]:
    facts: dict[str, Any] = {"kind": device.type, "name": devices.get_device_name(device)}
    if device.type != "cuda":
        return facts
    gpu = torch.cuda.get_device_properties(device)
    return facts | {
        "count": torch.cuda.device_count(),
        "memory_bytes": gpu.total_memory,
        "multiprocessors": gpu.multi_processor_count,
        "capability": f"{gpu.major}.{gpu.minor}",
        "attention": list_attention_kernels(),
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        **_query_nvidia(device),
    }


def _query_nvidia(device: torch.device) -> dict[str, Any]:
    """Return a GPU's driver, clocks and power limits, None for what it does not report; empty without NVIDIA's driver."""
    gpu = find_gpu(device)
    if gpu is None:
        return {}
    answers = {name: (ask(question, gpu, *kinds), convert) for name, (question, kinds, convert) in CLOCKS.items()}
    clocks = {name: None if answer is None else convert(answer) for name, (answer, convert) in answers.items()}
    return {"driver": ask("nvmlSystemGetDriverVersion"), "clocks": clocks}


def _describe_git() -> dict[str, Any] | None:
    """Return the commit and whether anything differs from it; None if the code is not in its own checkout."""
    git = ["git", "--no-optional-locks", "-C", str(ROOT)]
    top = _run_command([*git, "rev-parse", "--show-toplevel"])
    if top is None or Path(top).resolve() != ROOT.resolve():
        return None
    return {
        "commit": _run_command([*git, "rev-parse", "--verify", "--quiet", "HEAD"]),
        "dirty": bool(_run_command([*git, "status", "--porcelain"])),
    }


def _run_command(command: Sequence[str]) -> str | None:
    """Return what a command prints, stripped; None if it does not exist or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
