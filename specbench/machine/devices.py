"""Devices and dtypes: which are there, which `auto` takes, and what the CPU has for bfloat16."""

import gc
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch

from specbench.errors import InputError, suggest_choices

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


def list_devices() -> list[str]:
    """What a device may be called on this machine, the one that `auto` takes first."""
    cuda = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return [*(["cuda"] if cuda else []), *cuda, *mps, "cpu"]


def pick_device(name: str) -> torch.device:
    """auto: CUDA, else MPS, else the CPU; cuda is the first card, or that of this process's LOCAL_RANK where several train.

    Raises InputError for a device that is not there.
    """
    there = list_devices()
    if name not in ("auto", *there):
        raise InputError(f"device={name}: not on this machine; expected {suggest_choices(name, ['auto', *there])}")
    chosen = there[0] if name == "auto" else name
    return torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if chosen == "cuda" else chosen)


def list_timed_devices(name: str, device_map: object) -> list[str]:
    """What a model keeps busy. A card goes by its UUID: CUDA_VISIBLE_DEVICES gives every process numbers of its own."""
    device = pick_device(name)
    if device.type != "cuda":
        return [device.type]
    cards = [device.index] if device_map is None else range(torch.cuda.device_count())
    return [str(torch.cuda.get_device_properties(card).uuid) for card in cards]


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """auto: bfloat16 where the device multiplies it in hardware, else float16 on a GPU and float32 on a CPU.

    Raises InputError for another name and for float64 on MPS, which lacks it.
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
    """Whether this CPU has instructions that multiply bfloat16 and a torch that uses them.

    Not asked of oneDNN: it also calls bfloat16 supported where plain AVX-512 emulates it, slower than float32.
    """
    there = get_cpu_capabilities()
    x86 = there.get("amx_bf16") or there.get("avx512_bf16")
    arm = there.get("bf16") or there.get("sve_bf16")
    return bool((x86 or arm) and torch.backends.mkldnn.is_available())


def get_cpu_capabilities() -> Mapping[str, Any]:
    """Instruction sets by torch's names: avx512_f, avx512_vnni, avx512_bf16, amx_bf16; on ARM bf16, i8mm, sve."""
    if hasattr(torch.cpu, "get_capabilities"):
        return torch.cpu.get_capabilities()
    asked = {name: getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "avx512", "avx2")}
    known = {name: bool(ask()) for name, ask in asked.items() if ask}
    return {**known, "amx_bf16": torch.cpu._is_amx_tile_supported()}


def get_device_name(device: torch.device) -> str:
    """What the maker calls it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return f"{torch.backends.mps.get_name()} (MPS)" if hasattr(torch.backends.mps, "get_name") else "MPS"
    return get_cpu_name()


def get_cpu_name() -> str:
    """The processor's model as the system gives it, else as torch does."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else str(get_cpu_capabilities().get("cpu_name") or "unknown")


def get_free_memory(device: torch.device) -> int:
    """What can still be had: of a CUDA card, with what torch holds of it unused, else of main memory without swapping."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    return psutil.virtual_memory().available


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def count_usable_cores() -> int:
    """Logical cores that this process may run on."""
    process = psutil.Process()
    return len(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else psutil.cpu_count() or 1


def get_total_memory() -> int:
    """Main memory of the machine."""
    return psutil.virtual_memory().total


def reset_peak_memory(device: torch.device) -> None:
    """Forget the peak so far, where the system lets us: CUDA, and Linux for main memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak alone (man 5 proc)


def get_peak_memory(device: torch.device) -> int | None:
    """CUDA: most that torch had allocated since the reset. Else the process's largest resident size, weights included."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def release_memory(device: torch.device) -> None:
    """Give back what was freed: allocators keep it, and it would be counted as what comes next."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    if hasattr(psutil, "heap_trim"):
        psutil.heap_trim()
