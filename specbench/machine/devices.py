"""Devices and dtypes: which exist here, which one `auto` picks, and whether the CPU multiplies bfloat16 in hardware."""

import gc
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from specbench.errors import InputError, suggest_choices

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)}


def list_devices() -> list[str]:
    """Return the names of this machine's devices, the one that `auto` picks first."""
    cuda = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return [*(["cuda"] if cuda else []), *cuda, *mps, "cpu"]


def pick_device(name: str) -> torch.device:
    """auto: CUDA, else MPS, else the CPU. cuda: the first GPU, or in distributed training the one of LOCAL_RANK.

    Raises InputError for a device that this machine does not have.
    """
    devices = list_devices()
    if name not in ("auto", *devices):
        raise InputError(f"device={name}: not on this machine; expected {suggest_choices(name, ['auto', *devices])}")
    chosen = devices[0] if name == "auto" else name
    return torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if chosen == "cuda" else chosen)


def list_timed_devices(name: str, device_map: object) -> list[str]:
    """Return the devices that a model keeps busy. GPUs go by UUID, since CUDA_VISIBLE_DEVICES renumbers them per process."""
    device = pick_device(name)
    if device.type != "cuda":
        return [device.type]
    gpus = [device.index] if device_map is None else range(torch.cuda.device_count())
    return [str(torch.cuda.get_device_properties(gpu).uuid) for gpu in gpus]


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """auto: bfloat16 if the device multiplies it in hardware, else float16 on a GPU and float32 on a CPU.

    Raises InputError for an unknown name, and for float64 on MPS, which lacks it.
    """
    if name == "auto":
        return _pick_fastest_dtype(device)
    choices = [dtype for dtype in DTYPES if (dtype, device.type) != ("float64", "mps")]
    if name not in choices:
        raise InputError(f"dtype={name}: on {device.type} expected {suggest_choices(name, ['auto', *choices])}")
    return DTYPES[name]


def _pick_fastest_dtype(device: torch.device) -> torch.dtype:
    if device.type == "cpu":
        return torch.bfloat16 if has_bf16_units() else torch.float32
    if device.type == "mps":
        return torch.bfloat16 if torch.backends.mps.is_macos_or_newer(14, 0) else torch.float16
    with torch.cuda.device(device):
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def has_bf16_units() -> bool:
    """Return whether this CPU has instructions that multiply bfloat16, and torch uses them.

    oneDNN's own check is no help: it also accepts plain AVX-512, which emulates bfloat16 and is slower than float32.
    """
    capabilities = get_cpu_capabilities()
    units = any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16"))
    return units and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


def get_cpu_capabilities() -> Mapping[str, Any]:
    """Return instruction sets by torch's names: avx512_f, avx512_vnni, avx512_bf16, amx_bf16; on ARM bf16, i8mm, sve."""
    if hasattr(torch.cpu, "get_capabilities"):
        return torch.cpu.get_capabilities()
    checks = {name: getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "avx512", "avx2")}
    known = {name: bool(check()) for name, check in checks.items() if check}
    return {**known, "amx_bf16": torch.cpu._is_amx_tile_supported()}


def get_device_name(device: torch.device) -> str:
    """Return the product name of a device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return f"{torch.backends.mps.get_name()} (MPS)" if hasattr(torch.backends.mps, "get_name") else "MPS"
    return get_cpu_name()


def get_cpu_name() -> str:
    """Return the processor's model, from the system or else from torch."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else str(get_cpu_capabilities().get("cpu_name") or "unknown")


def get_free_memory(device: torch.device) -> int:
    """Return the free bytes: of a CUDA device including what torch caches unused, else of main memory without swapping."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    return psutil.virtual_memory().available


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def upload(host: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the host to a device; the host does not wait for a GPU."""
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)


def count_usable_cores() -> int:
    """Return the number of logical cores that this process may run on."""
    process = psutil.Process()
    return len(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else psutil.cpu_count() or 1


@cache
def count_default_threads() -> int:
    """Return the number of threads that torch had chosen in this process at the first call."""
    return torch.get_num_threads()


@contextmanager
def keep_threads() -> Iterator[None]:
    """Give torch its number of threads back afterwards, whatever a run sets."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def get_total_memory(device: torch.device | None = None) -> int:
    """Return the bytes of a device's memory, by default of main memory."""
    if device is not None and device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return psutil.virtual_memory().total


def reset_peak_memory(device: torch.device) -> None:
    """Reset the peak, where the system allows it: on CUDA, and for main memory on Linux."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # resets only the peak (man 5 proc)


def get_peak_memory(device: torch.device) -> int | None:
    """Return the most bytes that torch allocated since the reset (CUDA), else the process's largest resident size."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def release_memory(device: torch.device) -> None:
    """Return freed memory to the system. Allocators keep it, and the next job's peak would include it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    if hasattr(psutil, "heap_trim"):
        psutil.heap_trim()
