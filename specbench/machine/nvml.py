"""What NVIDIA's driver says of a card (NVML); nothing where there is no such driver."""

from functools import cache
from types import ModuleType
from typing import Any

import torch

GRAPHICS, SM, MEMORY = range(3)  # NVML's kinds of clocks


def ask(question: str, *about: Any) -> Any:
    """What NVML's function of that name answers; None where it does not know, or nobody is there to ask."""
    library = _load_library()
    if library is None:
        return None
    try:
        return getattr(library, question)(*about)
    except (library.NVMLError, AttributeError):  # a card, a driver or a package that lacks it
        return None


def find_card(device: torch.device) -> Any:
    """The card that torch calls so, for questions about it; None where no driver knows it."""
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    return ask("nvmlDeviceGetHandleByUUID", f"GPU-{uuid}") or ask("nvmlDeviceGetHandleByIndex", device.index or 0)


@cache
def _load_library() -> ModuleType | None:
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # whatever is wrong with it, runs need none
        return None
    return pynvml
