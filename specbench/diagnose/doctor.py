"""The checks of `specbench doctor`: what this machine can do and what it lacks."""

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
from specbench.diagnose.roofline import measure_copy_bandwidth, measure_read_bandwidth
from specbench.machine.devices import (
    count_usable_cores,
    get_device_name,
    get_free_memory,
    get_total_memory,
    has_bf16_units,
    pick_device,
    pick_dtype,
)
from specbench.models.forwards import find_compiler
from specbench.models.packed import can_pack

PYTHON = ">=3.10"  # for a clone that is not installed
PACKAGES = ("torch", "transformers", "datasets", "pandas", "matplotlib", "hydra-core", "rich")
EMBEDDED = ("target", "draft")  # folders of specbench/zoo
LEAST_MEMORY = 2 << 30  # bytes: the embedded target in float32 with room to expand
LEAST_DISK = 1 << 30  # bytes: runs and reports
QUICK_COPY = 1 << 27  # bytes


@dataclass(frozen=True)
class Check:
    """ok: True fine, False must be fixed, None worth knowing."""

    name: str
    ok: bool | None
    detail: str


def run_checks() -> list[Check]:
    """Run all checks in a second or two, without downloads and without leaving files."""
    return [
        _check_python(),
        *_check_packages(),
        *_check_device(),
        _check_threads(),
        _check_packing(),
        _check_compiler(),
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
        expected = metadata("specbench")["Requires-Python"]
    except PackageNotFoundError:
        expected = PYTHON
    installed = platform.python_version()
    return Check("Python", SpecifierSet(expected).contains(installed, prereleases=True), f"{installed} (expected {expected})")


def _check_packages() -> Iterator[Check]:
    """Check the required packages; in a clone that is not installed, only that the main ones are there, in any version."""
    try:
        requirements = [Requirement(line) for line in requires("specbench") or []]
    except PackageNotFoundError:
        yield Check("specbench", None, "runs from a clone that is not installed: package versions are not checked")
        requirements = [Requirement(name) for name in PACKAGES]
    for requirement in requirements:
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield _check_package(requirement)


def _check_package(required: Requirement) -> Check:
    expected = f" (expected {required.specifier})" if required.specifier else ""
    try:
        installed = version(required.name)
    except PackageNotFoundError:
        return Check(required.name, False, f"not installed{expected}")
    return Check(required.name, required.specifier.contains(installed, prereleases=True), installed + expected)


def _check_device() -> Iterator[Check]:
    device = pick_device("auto")
    dtype = str(pick_dtype("auto", device)).removeprefix("torch.")
    yield Check("device", True, f"device=auto is {device}: {get_device_name(device)}")
    yield Check("dtype", True, f"dtype=auto is {dtype} on it")
    native = has_bf16_units()
    yield Check("bfloat16 on the CPU", native or None, "in hardware" if native else "not in hardware: float32 is faster")


def _check_threads() -> Check:
    threads, cores = torch.get_num_threads(), count_usable_cores()
    if threads > cores:
        return Check("threads", False, f"{threads} on {cores} cores: set threads={cores} or fewer")
    spare = f"; idle cores: {cores - threads} (one thread per physical core is usual)" if threads < cores else ""
    return Check("threads", True, f"{threads} on {cores} cores{spare}")


def _check_packing() -> Check:
    packs = can_pack(torch.device("cpu"), torch.float32)
    without = "torch without oneDNN: verifying several tokens in float32 on the CPU costs far more than one token"
    return Check("weight packing", packs or None, "weights in oneDNN's layout on the CPU" if packs else without)


def _check_bandwidth() -> Check:
    device = pick_device("auto")
    if device.type == "cpu":
        detail = f"{measure_read_bandwidth(QUICK_COPY, repeats=3) / 1e9:.3g} GB/s on {device} (reading, a rough measurement)"
    else:
        speed = measure_copy_bandwidth(device, QUICK_COPY, repeats=3)
        detail = f"{speed / 1e9:.3g} GB/s on {device} (copying, read and written bytes, a rough measurement)"
    return Check("memory bandwidth", True, detail)


def _check_compiler() -> Check:
    compiler = find_compiler()
    without = "none found: forwards run eagerly on the CPU, so the baseline is slower than this machine allows"
    return Check("C++ compiler", bool(compiler) or None, f"{compiler}: forwards are compiled" if compiler else without)


def _check_memory() -> Check:
    free, total = get_free_memory(torch.device("cpu")), get_total_memory()
    return Check("memory", free >= LEAST_MEMORY, f"{free / 1e9:.3g} GB free of {total / 1e9:.3g} GB")


def _check_disk() -> Check:
    free = shutil.disk_usage(ROOT).free
    return Check("disk", free >= LEAST_DISK, f"{free / 1e9:.3g} GB free on the project's disk")


def _check_embedded() -> Iterator[Check]:
    for name in EMBEDDED:
        yield check_weights(f"embedded {name}", ROOT / "specbench" / "zoo" / name / "model.safetensors")


def check_weights(name: str, file: Path) -> Check:
    """Check that a safetensors file exists and is complete: reads its header and locates every tensor."""
    if not file.is_file():
        return Check(name, False, f"{file.name} is missing: make zoo")
    try:
        with safe_open(file, framework="pt") as tensors:
            count = len(list(tensors.keys()))
    except (SafetensorError, OSError) as error:
        return Check(name, False, f"{file.name} cannot be read: {str(error).splitlines()[0]}")
    return Check(name, True, f"{count} tensors, {file.stat().st_size / 1e6:.3g} MB")
