"""What this machine can do and what is missing, before a run costs an hour to find out."""

import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path

import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text
from safetensors import SafetensorError, safe_open

from specbench import ROOT
from specbench.diagnose.roofline import copy_bandwidth
from specbench.machine.devices import (
    device_name,
    free_memory_bytes,
    has_bf16_units,
    memory_bytes,
    pick_device,
    pick_dtype,
    usable_cores,
)
from specbench.models.packed import can_pack

PYTHON = ">=3.10"  # where specbench runs uninstalled; else its metadata says
PACKAGES = ("torch", "transformers", "datasets", "pandas", "matplotlib", "hydra-core", "rich")
EMBEDDED = ("target", "draft")  # folders of specbench/zoo
LEAST_MEMORY, LEAST_DISK = (
    2 << 30,
    1 << 30,
)  # bytes: the embedded target in float32 with room to widen; runs and reports
QUICK_COPY = 1 << 27  # bytes


@dataclass(frozen=True)
class Check:
    """ok: True fine, False must be mended, None good to know."""

    name: str
    ok: bool | None
    detail: str


def checks() -> list[Check]:
    """Everything, in a second or two; downloads nothing and leaves nothing behind."""
    return [
        _python(),
        *_packages(),
        *_device(),
        _threads(),
        _packing(),
        _bandwidth(),
        _memory(),
        _disk(),
        *_embedded(),
    ]


def render(checks: list[Check]) -> Table:
    """The checks for the terminal."""
    table = Table(title="specbench doctor", title_justify="left", box=SIMPLE_HEAD)
    for name in ("", "check", "found"):
        table.add_column(name, overflow="fold")
    marks = {True: Text("ok", "green"), False: Text("FAIL", "bold red"), None: Text("note", "yellow")}
    for check in checks:
        table.add_row(marks[check.ok], Text(check.name), Text(check.detail))
    return table


def _python() -> Check:
    try:
        wanted = metadata("specbench")["Requires-Python"]
    except PackageNotFoundError:
        wanted = PYTHON
    found = platform.python_version()
    return Check("Python", SpecifierSet(wanted).contains(found, prereleases=True), f"{found} (wanted {wanted})")


def _packages() -> Iterator[Check]:
    """Each package that specbench asks for; without its metadata the best known ones, any version."""
    try:
        asked = [Requirement(line) for line in requires("specbench") or []]
    except PackageNotFoundError:
        yield Check("specbench", None, "runs from a clone that is not installed: versions of packages are not checked")
        asked = [Requirement(name) for name in PACKAGES]
    for one in asked:
        if one.marker is None or one.marker.evaluate({"extra": ""}):
            yield _package(one)


def _package(asked: Requirement) -> Check:
    wanted = f" (wanted {asked.specifier})" if asked.specifier else ""
    try:
        found = version(asked.name)
    except PackageNotFoundError:
        return Check(asked.name, False, f"not installed{wanted}")
    return Check(asked.name, asked.specifier.contains(found, prereleases=True), found + wanted)


def _device() -> Iterator[Check]:
    device = pick_device("auto")
    dtype = str(pick_dtype("auto", device)).removeprefix("torch.")
    yield Check("device", True, f"device=auto takes {device}: {device_name(device)}")
    yield Check("dtype", True, f"dtype=auto takes {dtype} there")
    there = has_bf16_units()
    yield Check("bfloat16 on the CPU", there or None, "in hardware" if there else "not in hardware: float32 is faster")


def _threads() -> Check:
    threads, cores = torch.get_num_threads(), usable_cores()
    if threads > cores:
        return Check("threads", False, f"{threads} on {cores} cores: set threads={cores} or fewer")
    spare = f"; idle cores: {cores - threads} (one thread a physical core is usual)" if threads < cores else ""
    return Check("threads", True, f"{threads} on {cores} cores{spare}")


def _packing() -> Check:
    there = can_pack(torch.device("cpu"), torch.float32)
    without = "torch without oneDNN: a float32 verify of several tokens on the CPU costs far more than one token"
    return Check("weight packing", there or None, "weights in oneDNN's layout on the CPU" if there else without)


def _bandwidth() -> Check:
    device = pick_device("auto")
    speed = copy_bandwidth(device, QUICK_COPY, repeats=3)
    return Check("copy bandwidth", True, f"{speed / 1e9:.3g} GB/s on {device} (read and written bytes, a quick look)")


def _memory() -> Check:
    free, whole = free_memory_bytes(torch.device("cpu")), memory_bytes()
    return Check("memory", free >= LEAST_MEMORY, f"{free / 1e9:.3g} GB free of {whole / 1e9:.3g} GB")


def _disk() -> Check:
    free = shutil.disk_usage(ROOT).free
    return Check("disk", free >= LEAST_DISK, f"{free / 1e9:.3g} GB free where the project lies")


def _embedded() -> Iterator[Check]:
    for name in EMBEDDED:
        yield weights(f"embedded {name}", ROOT / "specbench" / "zoo" / name / "model.safetensors")


def weights(name: str, file: Path) -> Check:
    """Whether a safetensors file is there and whole: its header is read, and every tensor found inside the file."""
    if not file.is_file():
        return Check(name, False, f"{file.name} is missing: make zoo")
    try:
        with safe_open(file, framework="pt") as opened:
            count = len(list(opened.keys()))
    except (SafetensorError, OSError) as error:
        return Check(name, False, f"{file.name} cannot be read: {str(error).splitlines()[0]}")
    return Check(name, True, f"{count} tensors, {file.stat().st_size / 1e6:.3g} MB")
