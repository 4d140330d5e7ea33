"""Questions to NVIDIA's driver about a GPU (NVML). Without the driver, every answer is None."""

from functools import cache
from types import ModuleType
from typing import Any

import torch

GRAPHICS, SM, MEMORY = range(3)  # NVML's clock types


def ask(question: str, *about: Any) -> Any:
    """Return what NVML's function of that name answers; None if it fails or the driver is missing."""
    library = _load_library()
    if library is None:
        return None
    try:
        return getattr(library, question)(*about)
    except (library.NVMLError, AttributeError):  # the GPU, the driver or the package lacks it
        return None


def find_gpu(device: torch.device) -> Any:
    """Return NVML's handle of a torch device, for questions about it; None if the driver does not know it."""
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    return ask("nvmlDeviceGetHandleByUUID", f"GPU-{uuid}") or ask("nvmlDeviceGetHandleByIndex", device.index or 0)


@cache
def _load_library() -> ModuleType | None:
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # runs do not need it, whatever the reason
        return None
    return pynvml  # type: ignore[no-any-return]
