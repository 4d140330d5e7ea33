"""Attention alone, over all layers of a shape: torch's primitives side by side, and the KV bytes that each reads a second.

    python -m benchmarks.attention [--shape 1b] [--device cpu] [--lengths 1024,4096] [--nodes 1,16] [--out reports/attention.csv]

The engine calls scaled_dot_product_attention with the query heads of a key-value head as its rows, under an additive mask.
Beside it: the same with its own grouped heads (enable_gqa), FlexAttention compiled, matrix products, and a copy of as many bytes.
"""

import argparse
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median
from textwrap import shorten
from time import perf_counter

import pandas as pd
import torch
from rich.table import Table
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoConfig

from specbench import ROOT
from specbench.compose import composed
from specbench.decoding.attention import _grouped
from specbench.devices import pick_device, synchronize
from specbench.errors import InputError, one_line, refuse
from specbench.parsing import console
from specbench.records import write_atomic

REPEATS = 5
LENGTHS, NODES = (1024, 4096, 16384), (1, 16, 64)

Way = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""query (1, heads, N, D), keys and values (1, key-value heads, S, D), additive mask (N, S) -> (1, heads, N, D)."""


@dataclass(frozen=True)
class Sizes:
    layers: int
    heads: int
    groups: int
    width: int

    @classmethod
    def of(cls, shape: str) -> "Sizes":
        target = composed(["target=mini"]).target
        if shape not in target.shapes:
            raise InputError(f"no shape is called {shape}; there are {', '.join(target.shapes)}")
        sizes = {**AutoConfig.from_pretrained(ROOT / target.path).to_dict(), "head_dim": None, **target.shapes[shape]}
        heads = sizes["num_attention_heads"]
        width = sizes["head_dim"] or sizes["hidden_size"] // heads
        return cls(sizes["num_hidden_layers"], heads, target.shapes[shape].get("num_key_value_heads", heads), width)


def ways() -> dict[str, Way]:
    flex = torch.compile(flex_attention, dynamic=True)

    def flexible(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        return flex(query, keys, values, lambda score, _b, _h, row, entry: score + mask[row, entry], enable_gqa=True)

    def own_groups(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        return scaled_dot_product_attention(query, keys, values, mask, enable_gqa=True)

    return {
        "the engine's": lambda query, keys, values, mask: _grouped(query, keys, values, mask, None),
        "enable_gqa": own_groups,
        "FlexAttention": flexible,
        "matrix products": _products,
    }


def _products(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    batch, heads, nodes, width = query.shape
    rows = query.reshape(batch, keys.shape[1], -1, width) * width**-0.5
    scores = (rows @ keys.mT).unflatten(2, (-1, nodes)) + mask
    return (scores.softmax(-1).flatten(2, 3) @ values).reshape(batch, heads, nodes, width)


@torch.inference_mode()
def measure(shape: str, device: torch.device, lengths: Iterable[int] = LENGTHS, nodes: Iterable[int] = NODES) -> pd.DataFrame:
    """In half precision, a row per context length, number of nodes and way: ms over all layers, gb_per_s of KV entries."""
    sizes, found = Sizes.of(shape), []
    dtype = torch.bfloat16 if device.type == "cpu" else torch.float16
    for length in lengths:
        made = torch.randn(sizes.layers, 2, 1, sizes.groups, length + 64, sizes.width, dtype=dtype, device=device)
        stores = list(made[..., :length, :])
        for count in nodes:
            query = torch.randn(1, sizes.heads, count, sizes.width, dtype=dtype, device=device)
            mask = torch.zeros(count, length, dtype=dtype, device=device)
            size = sum(store.numel() for store in stores) * dtype.itemsize
            for way, seconds in _times(stores, query, mask).items():
                row = {"tokens": length, "nodes": count, "way": way, "ms": 1e3 * seconds, "gb_per_s": size / seconds / 1e9}
                found.append(row)
    return pd.DataFrame(found)


def _times(stores: list[Tensor], query: Tensor, mask: Tensor) -> dict[str, float]:
    """Seconds by way, medians of interleaved repeats. What cannot be compiled on this machine is told and left out."""
    into = torch.empty_like(stores[0])
    calls: dict[str, Callable[[Tensor], object]] = {"a copy": into.copy_}
    for name, way in ways().items():
        calls[name] = lambda store, way=way: way(query, *store, mask)  # type: ignore[misc]
    taken: dict[str, list[float]] = {}
    for name, call in calls.items():
        try:
            call(stores[0])
            taken[name] = []
        except RuntimeError as error:
            console.print(f"notice: {name}: {shorten(one_line(error), 120)}", markup=False)
    for _, (name, seconds) in product(range(REPEATS), taken.items()):
        seconds.append(_seconds(calls[name], stores))
    return {name: median(seconds) for name, seconds in taken.items()}


def _seconds(call: Callable[[Tensor], object], stores: list[Tensor]) -> float:
    synchronize(stores[0].device)
    begun = perf_counter()
    for store in stores:
        call(store)
    synchronize(stores[0].device)
    return perf_counter() - begun


def shown(found: pd.DataFrame, title: str) -> Table:
    table = Table("tokens", "nodes", "way", "ms", "GB/s", title=title)
    for row in found.itertuples():
        table.add_row(str(row.tokens), str(row.nodes), str(row.way), f"{row.ms:.2f}", f"{row.gb_per_s:.1f}")
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="1b")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)), help="tokens in the KV store")
    parser.add_argument("--nodes", default=",".join(map(str, NODES)), help="rows of a forward")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = pick_device(options.device)
    lengths, nodes = ([int(number) for number in text.split(",")] for text in (options.lengths, options.nodes))
    found = measure(options.shape, device, lengths, nodes)
    out = options.out or Path(f"reports/attention-{options.shape}.csv")
    write_atomic(out, found.to_csv(index=False, float_format="%.3f"))
    console.print(shown(found, f"Attention of {options.shape}"), f"in {out}", sep="\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        sys.exit(refuse(error))
