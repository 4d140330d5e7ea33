"""Linear layers quantised at load, by torchao: target.quantize."""

from __future__ import annotations

from importlib.util import find_spec

from torch import nn

from specbench.errors import InputError, suggest_choices

LIBRARY = "torchao"
CHOICES = ("int8",)


def check_quantize(chosen: str | None) -> None:
    """Raise InputError for an unknown choice, and if its library is not installed."""
    if chosen is None:
        return
    if chosen not in CHOICES:
        raise InputError(f"quantize={chosen}: expected {suggest_choices(str(chosen), ['null', *CHOICES])}")
    if find_spec(LIBRARY) is None:
        raise InputError(f"quantize={chosen}: {LIBRARY} is not installed: pip install -e '.[quantize]'")


def quantize_layers(model: nn.Module, chosen: str) -> None:
    """Store the weights of all linear layers as integers, with a scale per row; products stay in the model's dtype."""
    check_quantize(chosen)
    if getattr(model, "is_quantized", False):
        raise InputError(f"quantize={chosen}: the checkpoint's layers are already quantised; expected null")
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(model, Int8WeightOnlyConfig())
