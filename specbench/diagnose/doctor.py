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
from specbench.diagnose.roofline import measure_copy_bandwidth
from specbench.machine.devices import (
    count_usable_cores,
    get_device_name,
    get_free_memory,
    get_total_memory,
    has_bf16_units,
    pick_device,
    pick_dtype,
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


def run_checks() -> list[Check]:
    """Everything, in a second or two; downloads nothing and leaves nothing behind."""
    return [
        _check_python(),
        *_check_packages(),
        *_check_device(),
        _check_threads(),
        _check_packing(),
        _check_bandwidth(),
        _check_memory(),
        _check_disk(),
        *_check_embedded(),
    ]


def build_checks_table(checks: list[Check]) -> Table:
    """The checks for the terminal."""
    table = Table(title="specbench doctor", title_justify="left", box=SIMPLE_HEAD)
    for name in ("", "check", "found"):
        table.add_column(name, overflow="fold")
    marks = {True: Text("ok", "green"), False: Text("FAIL", "bold red"), None: Text("note", "yellow")}
    for check in checks:
        table.add_row(marks[check.ok], Text(check.name), Text(check.detail))
    return table


def _check_python() -> Check:
    try:
        wanted = metadata("specbench")["Requires-Python"]
    except PackageNotFoundError:
        wanted = PYTHON
    found = platform.python_version()
    return Check("Python", SpecifierSet(wanted).contains(found, prereleases=True), f"{found} (wanted {wanted})")


def _check_packages() -> Iterator[Check]:
    """Each package that specbench asks for; without its metadata the best known ones, any version."""
    try:
        asked = [Requirement(line) for line in requires("specbench") or []]
    except PackageNotFoundError:
        yield Check("specbench", None, "runs from a clone that is not installed: versions of packages are not checked")
        asked = [Requirement(name) for name in PACKAGES]
    for one in asked:
        if one.marker is None or one.marker.evaluate({"extra": ""}):
            yield _check_package(one)


def _check_package(asked: Requirement) -> Check:
    wanted = f" (wanted {asked.specifier})" if asked.specifier else ""
    try:
        found = version(asked.name)
    except PackageNotFoundError:
        return Check(asked.name, False, f"not installed{wanted}")
    return Check(asked.name, asked.specifier.contains(found, prereleases=True), found + wanted)


def _check_device() -> Iterator[Check]:
    device = pick_device("auto")
    dtype = str(pick_dtype("auto", device)).removeprefix("torch.")
    yield Check("device", True, f"device=auto takes {device}: {get_device_name(device)}")
    yield Check("dtype", True, f"dtype=auto takes {dtype} there")
    there = has_bf16_units()
    yield Check("bfloat16 on the CPU", there or None, "in hardware" if there else "not in hardware: float32 is faster")


def _check_threads() -> Check:
    threads, cores = torch.get_num_threads(), count_usable_cores()
    if threads > cores:
        return Check("threads", False, f"{threads} on {cores} cores: set threads={cores} or fewer")
    spare = f"; idle cores: {cores - threads} (one thread a physical core is usual)" if threads < cores else ""
    return Check("threads", True, f"{threads} on {cores} cores{spare}")


def _check_packing() -> Check:
    there = can_pack(torch.device("cpu"), torch.float32)
    without = "torch without oneDNN: a float32 verify of several tokens on the CPU costs far more than one token"
    return Check("weight packing", there or None, "weights in oneDNN's layout on the CPU" if there else without)


def _check_bandwidth() -> Check:
    device = pick_device("auto")
    speed = measure_copy_bandwidth(device, QUICK_COPY, repeats=3)
    return Check("copy bandwidth", True, f"{speed / 1e9:.3g} GB/s on {device} (read and written bytes, a quick look)")


def _check_memory() -> Check:
    free, whole = get_free_memory(torch.device("cpu")), get_total_memory()
    return Check("memory", free >= LEAST_MEMORY, f"{free / 1e9:.3g} GB free of {whole / 1e9:.3g} GB")


def _check_disk() -> Check:
    free = shutil.disk_usage(ROOT).free
    return Check("disk", free >= LEAST_DISK, f"{free / 1e9:.3g} GB free where the project lies")


def _check_embedded() -> Iterator[Check]:
    for name in EMBEDDED:
        yield check_weights(f"embedded {name}", ROOT / "specbench" / "zoo" / name / "model.safetensors")


def check_weights(name: str, file: Path) -> Check:
    """Whether a safetensors file is there and whole: its header is read, and every tensor found inside the file."""
    if not file.is_file():
        return Check(name, False, f"{file.name} is missing: make zoo")
    try:
        with safe_open(file, framework="pt") as opened:
            count = len(list(opened.keys()))
    except (SafetensorError, OSError) as error:
        return Check(name, False, f"{file.name} cannot be read: {str(error).splitlines()[0]}")
    return Check(name, True, f"{count} tensors, {file.stat().st_size / 1e6:.3g} MB")
