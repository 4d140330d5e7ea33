"""Linear layers that also hold their weights in oneDNN's block layout, so that on a CPU a few tokens cost as much as one.

torch's plain float32 product repacks the weight in every call with four rows or more. On two AVX-512 cores with 101 M weights,
1, 8, 16 and 64 rows take 21, 64, 86, 112 ms plain and 23, 29, 32, 91 ms packed: up to three rows run plain, more run packed, for
baseline and methods alike. In bfloat16 (two cores with its units; 1, 8, 16, 60 rows: 14, 18, 19, 56 ms plain and 11, 11, 13,
34 ms packed) all rows run packed. The cost is a second copy of the weights.
"""

from typing import cast

import torch
from torch import Tensor, nn

from specbench.machine.devices import has_bf16_units

ROWS = 8  # the block layout is chosen for this many rows
PLAIN_ROWS = {torch.float32: 3, torch.bfloat16: 0}  # up to this many rows the plain product is as fast
SMALLEST = 500_000  # weights; for smaller layers a call of oneDNN costs more than it saves


class PackedLinear(nn.Linear):
    """(..., in) -> (..., out): the same function as the layer it replaces, with shared parameters."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self._plain = PLAIN_ROWS[linear.weight.dtype] * self.in_features
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().contiguous(), ROWS)

    def forward(self, input: Tensor) -> Tensor:
        if input.numel() <= self._plain:
            return nn.functional.linear(input, self.weight, self.bias)
        return cast(Tensor, torch.ops.mkldnn._linear_pointwise(input, self.packed, self.bias, "none", [], ""))


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Return True on a CPU, if torch has oneDNN, for float32, and for bfloat16 if the processor has units for it."""
    built = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if device.type != "cpu" or dtype not in PLAIN_ROWS or not (built and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")):
        return False
    return dtype == torch.float32 or has_bf16_units()


def pack(model: nn.Module) -> None:
    """Replace every linear layer with at least SMALLEST weights, in place."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear and child.weight.numel() >= SMALLEST:
                setattr(module, name, PackedLinear(child))
