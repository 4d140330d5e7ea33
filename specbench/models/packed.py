"""Linear layers that also hold their weights in oneDNN's block layout, so that on a CPU a few tokens cost as much as one.

Layers that read the same input (query, key and value; gate and up) are one product. The fewest rows for which a layer takes the
packed product are measured, see products.py. The cost is a second copy of the weights: tied embeddings and new drafters read the
plain one, and so do compiled forwards of one row, where a product is a sum that the compiler fuses with the operations around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from hashlib import blake2b
from typing import Any, TypeGuard, cast
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from specbench.machine.devices import has_bf16_units
from specbench.machine.rehearsal import is_rehearsing

ROWS = 8  # the block layout is chosen for this many rows
HASHED = 1 << 14  # weights of a layer that its name depends on
DTYPES = (torch.float32, torch.bfloat16)


class Product:
    """(..., in) -> (..., out): x W^T + b. Fewer rows than `first_row` take the plain product."""

    def __init__(self, weight: Tensor, bias: Tensor | None, first_row: int = 1) -> None:
        self.weight, self.bias, self.first_row = weight, bias, first_row
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), ROWS)
        self.outputs = len(weight)

    @cached_property
    def handle(self) -> int:
        """Names the product in a compiled graph: by its weights, so that a later process finds the graph in the cache."""
        handle = _hash(self.weight, self.outputs)
        while handle in _products:
            handle += 1
        _products[handle] = self
        return handle

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply by an operation that is opaque to a compiler: it cannot look into packed weights."""
        return cast(Tensor, torch.ops.specbench.multiply(x, self.handle, self.outputs))

    def multiply(self, x: Tensor) -> Tensor:
        if x.numel() < self.first_row * x.shape[-1]:
            return linear(x, self.weight, self.bias)
        return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], ""))


def _hash(weight: Tensor, outputs: int) -> int:
    sample = weight.detach().flatten()[:: max(1, weight.numel() // HASHED)]
    digest = blake2b(sample.contiguous().view(torch.uint8).numpy().tobytes(), digest_size=6)
    digest.update(f"{tuple(weight.shape)} {weight.dtype} {outputs}".encode())
    return int.from_bytes(digest.digest(), "big")


_products: WeakValueDictionary[int, Product] = WeakValueDictionary()


def _register_operation() -> Any:
    """Register specbench::multiply, with the shape of its output, and return what keeps it registered."""
    library: Any = torch.library.Library("specbench", "DEF")  # type: ignore[no-untyped-call]
    library.define("multiply(Tensor x, int handle, int outputs) -> Tensor")
    library.impl("multiply", lambda x, handle, outputs: _products[handle].multiply(x), "CPU")
    torch.library.register_fake(
        "specbench::multiply", lambda x, handle, outputs: x.new_empty(*x.shape[:-1], outputs), lib=library
    )
    return library


_library = _register_operation()


def is_plain(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Return whether a module is a linear layer whose weight is stored as it is multiplied, not quantised by a library."""
    return type(module) is nn.Linear and "weight" in dict(module.named_parameters(recurse=False)) and not is_quantized(module)


def is_quantized(module: nn.Module) -> bool:
    """Return whether a library keeps a layer's weight quantised, although its class stays: compressed-tensors, torchao."""
    return hasattr(module, "quantization_scheme") or type(module.get_parameter("weight")).__module__.startswith("torchao.")


class PackedLinear(nn.Linear):
    """The same function as the layer it replaces, with shared parameters.

    first_row: the fewest rows that take the packed product; None: never, and nothing is packed. reduces: in a compiled forward,
    one row takes neither product but a sum.
    """

    reduces = False

    def __init__(self, layer: nn.Linear, first_row: int | None = 1) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        self.product = self.build_product(first_row)

    def build_product(self, first_row: int | None) -> Product | None:
        return None if first_row is None else Product(self.weight, self.bias, first_row)

    def forward(self, input: Tensor) -> Tensor:
        if input.requires_grad:  # of a drafter that is trained through the target's head: packed products have no gradient
            return linear(input, self.weight, self.bias)
        if self.reduces and torch.compiler.is_compiling() and input.shape[:-1].numel() == 1:
            return reduce(input, self.weight, self.bias)
        return self.multiply(input)

    def multiply(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias) if self.product is None else self.product(input)


class Joint:
    """The one product of several layers that are called one after another with the same input."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        weights: list[Tensor] = [layer.weight.detach() for layer in layers]
        biases: list[Tensor] = [layer.bias.detach() for layer in layers if layer.bias is not None]
        self.product = Product(torch.cat(weights), torch.cat(biases) if biases else None)
        assert self.product.handle >= 0  # named before its weights go
        self.product.weight = torch.empty(0)  # every layer has its own
        self.sizes = [layer.out_features for layer in layers]
        self._input: Tensor | None = None
        self._parts: Sequence[Tensor] = ()

    def get_part(self, x: Tensor, place: int) -> Tensor:
        """Return one layer's output, (..., out); all are computed when the first one, or another input, comes."""
        if place == 0 or self._input is not x:
            self._input, self._parts = x, torch.split(self.product(x), self.sizes, dim=-1)
        part = self._parts[place]
        if place == len(self.sizes) - 1:
            self._input, self._parts = None, ()
        return part


class JointLinear(PackedLinear):
    """One of the layers of a joint product."""

    def __init__(self, layer: nn.Linear, joint: Joint, place: int) -> None:
        self.joint, self.place = joint, place
        super().__init__(layer)

    def build_product(self, first_row: int | None) -> Product:
        return self.joint.product

    def multiply(self, input: Tensor) -> Tensor:
        return self.joint.get_part(input, self.place)


def reduce(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply one row, (..., in) -> (..., out), by sums in float32 or wider: slow unless compiled."""
    wide = torch.promote_types(x.dtype, torch.float32)
    out = (x.reshape(1, -1).to(wide) * weight.to(wide)).sum(dim=-1)
    out = out if bias is None else out + bias
    return out.to(x.dtype).view(*x.shape[:-1], -1)


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Return True on a CPU, if torch has oneDNN, for float32, and for bfloat16 if the processor has units for it.

    Never in a rehearsal: packing reads the weights; `count_packed` counts the copies.
    """
    if is_rehearsing():
        return False
    return has_packed_products(device, dtype)


def has_packed_products(device: torch.device, dtype: torch.dtype) -> bool:
    built = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if device.type != "cpu" or dtype not in DTYPES or not (built and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")):
        return False
    return dtype == torch.float32 or has_bf16_units()
