"""Linear layers that also hold their weights in oneDNN's block layout, so that on a CPU a few tokens cost as much as one.

Every number of rows takes the packed product, for baseline and methods alike: a rule by rows that suits one processor lets the
baseline run slower code on the next. float32, 768 x 2048 weights, two cores with AVX-512, microseconds:

    rows                                              1    2    3    4    8   16
    plain (on one core up to three rows)            365  627  723  561  552  658
    packed                                          154  177  136  132  176  220

On another AVX-512 processor plain was 9 % faster at one row and 2.2 times slower at eight. In bfloat16 packed is faster at every
number of rows. The cost is a second copy of the weights: tied embeddings and new drafters read the plain one.
"""

from typing import cast

import torch
from torch import Tensor, nn

from specbench.machine.devices import has_bf16_units

ROWS = 8  # the block layout is chosen for this many rows
DTYPES = (torch.float32, torch.bfloat16)
SMALLEST = 150_000  # weights; a smaller layer's call of oneDNN (15 µs) takes longer than its plain product for one row


class PackedLinear(nn.Linear):
    """(..., in) -> (..., out): the same function as the layer it replaces, with shared parameters."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().contiguous(), ROWS)

    def forward(self, input: Tensor) -> Tensor:
        return cast(Tensor, torch.ops.mkldnn._linear_pointwise(input, self.packed, self.bias, "none", [], ""))


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Return True on a CPU, if torch has oneDNN, for float32, and for bfloat16 if the processor has units for it."""
    built = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if device.type != "cpu" or dtype not in DTYPES or not (built and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")):
        return False
    return dtype == torch.float32 or has_bf16_units()


def pack(model: nn.Module) -> None:
    """Replace every linear layer with at least SMALLEST weights, in place."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear and child.weight.numel() >= SMALLEST:
                setattr(module, name, PackedLinear(child))
