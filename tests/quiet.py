"""A machine on which nothing else runs, or only what a test plants: tests must not depend on who else uses this one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from torch import nn


class PlantedMeter:
    """Stands for LoadMeter. reasons: called once per turn, for what disturbed it."""

    def __init__(self, reasons: Callable[[], list[str] | None] = lambda: []) -> None:
        self.reasons = reasons

    def start(self, **_: object) -> None:
        pass

    def stop(self, in_process: bool = True) -> Any:
        return SimpleNamespace(find_reasons=self.reasons)


def build_quiet_meter(device: object) -> PlantedMeter:
    return PlantedMeter()


def pack_large(layers: Sequence[nn.Linear]) -> int | None:
    """Stands for measure_first_row."""
    return 1 if layers[0].weight.numel() >= 150_000 else None


def silence_machine() -> None:
    """For a process of its own: no turn is disturbed, a time that is far outside has no consequence, nothing is compiled."""
    patch("specbench.running.harness.LoadMeter", build_quiet_meter).start()
    patch("specbench.running.attempts.MORE_TIME", 0.0).start()
    patch("specbench.models.forwards.SMALLEST", 1 << 62).start()
    patch("specbench.models.products.measure_first_row", pack_large).start()
