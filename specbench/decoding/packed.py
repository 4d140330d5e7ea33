"""Linear layers whose weights lie in oneDNN's own block layout, so that a CPU multiplies few tokens as cheaply as one.

torch's plain float32 matrix product repacks the whole weight for every call with four rows or more; measured on two AVX-512
cores, 101 M weights: 1, 8, 16 rows take 21, 64, 86 ms plain and 23, 29, 32 ms packed. The model's code is untouched; one of its
submodules is replaced by its equal, for the baseline and for every method alike.
"""

import torch
from torch import Tensor, nn

ROWS = 8  # the block layout is chosen for this many rows; single rows and large batches run at full speed with it too


class PackedLinear(nn.Module):
    """(..., in) -> (..., out), the same function as the layer it replaces."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight_bytes = linear.weight.nbytes
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().contiguous(), ROWS)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """float32 on a CPU whose torch was built with oneDNN."""
    there = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    return device.type == "cpu" and dtype == torch.float32 and there


def pack(model: nn.Module) -> None:
    """Replace every linear layer in place; the plain weights are freed unless something else (an embedding) shares them."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear:
                setattr(module, name, PackedLinear(child))
