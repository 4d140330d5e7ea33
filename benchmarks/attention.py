"""Only attention, over all layers of a shape: torch's primitives side by side, and the KV bytes that each reads per second.

    python -m benchmarks.attention [--shape 1b] [--device cpu] [--lengths 1024,4096] [--nodes 1,16] [--out reports/attention.csv]

The engine calls scaled_dot_product_attention with the query heads of a key-value head as rows, and an additive mask for more than
one node. Compared with it: enable_gqa, compiled FlexAttention, matrix products, and a copy, whose bytes count read and written.
"""

import argparse
from collections.abc import Callable, Iterable
from functools import lru_cache
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
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.embedded import exit_with, parse_numbers
from specbench import ROOT
from specbench.analysis.summary import format_csv
from specbench.cli.output import console
from specbench.cli.parser import Parser
from specbench.decoding.attention import _attend_grouped
from specbench.decoding.masks import share
from specbench.errors import InputError, format_error
from specbench.machine.devices import pick_device, synchronize
from specbench.models.expand import expand_config
from specbench.records.files import write_atomic
from specbench.setup.compose import compose_run
from specbench.setup.objects import silence_libraries

REPEATS = 5
COPY = "a copy"
LENGTHS, NODES = (1024, 4096, 16384), (1, 16, 64)

Attention = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""query (1, heads, N, D), keys and values (1, key-value heads, S, D), additive mask (N, S) or None -> (1, heads, N, D)."""


def list_attentions(flex: Callable[..., Tensor]) -> dict[str, Attention]:
    """Return attention functions by name. flex: flex_attention, compiled or not."""

    def flexible(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        bias = None if mask is None else lambda score, _batch, _head, row, entry: score + mask[row, entry]
        return flex(query, keys, values, bias, enable_gqa=True)

    once_per_forward = lru_cache(maxsize=1)(share)

    def as_engine(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        mask = None if mask is None else once_per_forward(mask, query.shape[1] // keys.shape[1])
        return _attend_grouped(query, keys, values, mask, None)

    def own_groups(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        return scaled_dot_product_attention(query, keys, values, mask, enable_gqa=True)

    return {
        "the engine's": as_engine,
        "enable_gqa": own_groups,
        "FlexAttention": flexible,
        "matrix products": _products,
    }


def _products(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    batch, heads, nodes, width = query.shape
    rows = query.reshape(batch, keys.shape[1], -1, width) * width**-0.5
    scores = (rows @ keys.mT).unflatten(2, (-1, nodes)) + (0 if mask is None else mask)
    out: Tensor = scores.softmax(-1).flatten(2, 3) @ values
    return out.reshape(batch, heads, nodes, width)


def expand_shape(shape: str) -> LlamaConfig:
    """Return the mini target's config expanded to the shape. Raises InputError for an unknown shape."""
    silence_libraries()
    target = compose_run(["target=mini"]).target
    assert target.shapes is not None and target.path is not None
    if shape not in target.shapes:
        raise InputError(f"no such shape: {shape}; expected one of {', '.join(target.shapes)}")
    return expand_config(LlamaForCausalLM.from_pretrained(ROOT / target.path), target.shapes[shape])


@torch.inference_mode()
def measure(shape: str, device: torch.device, lengths: Iterable[int] = LENGTHS, nodes: Iterable[int] = NODES) -> pd.DataFrame:
    """Return a row per context length, number of nodes and way: ms over all layers, gb_per_s of KV entries; half precision."""
    config, rows = expand_shape(shape), []
    dtype = torch.bfloat16 if device.type == "cpu" else torch.float16
    width, kv_heads = config.head_dim, config.num_key_value_heads
    assert width is not None and kv_heads is not None
    for length in lengths:
        kv = torch.randn(config.num_hidden_layers, 2, 1, kv_heads, length + max(NODES), width, dtype=dtype, device=device)[
            ..., :length, :
        ]
        for count in nodes:
            query = torch.randn(1, config.num_attention_heads, count, width, dtype=dtype, device=device)
            mask = None if count == 1 else share(torch.zeros(count, length, dtype=dtype, device=device), 1)
            for way, seconds in _time_attentions(kv, query, mask).items():
                moved = kv.numel() * dtype.itemsize * (2 if way == COPY else 1)
                row = {"tokens": length, "nodes": count, "way": way, "ms": 1e3 * seconds, "gb_per_s": moved / seconds / 1e9}
                rows.append(row)
    return pd.DataFrame(rows)


def _time_attentions(kv: Tensor, query: Tensor, mask: Tensor | None) -> dict[str, float]:
    """Return median seconds of interleaved repeats by name. What this machine cannot compile is reported and left out."""
    copy = torch.empty_like(kv)
    calls: dict[str, Callable[[int], object]] = {COPY: lambda layer: copy[layer].copy_(kv[layer])}
    for name, way in list_attentions(torch.compile(flex_attention, dynamic=True)).items():
        calls[name] = lambda layer, way=way: way(query, *kv[layer], mask)  # type: ignore[misc]
    taken: dict[str, list[float]] = {}
    for name, call in calls.items():
        try:
            _time_layers(call, kv)
            taken[name] = []
        except RuntimeError as error:
            console.print(f"notice: {name}: {shorten(format_error(error), 120)}", markup=False)
    for _, (name, seconds) in product(range(REPEATS), taken.items()):
        seconds.append(_time_layers(calls[name], kv))
    return {name: median(seconds) for name, seconds in taken.items()}


def _time_layers(call: Callable[[int], object], kv: Tensor) -> float:
    synchronize(kv.device)
    begun = perf_counter()
    for layer in range(len(kv)):
        call(layer)
    synchronize(kv.device)
    return perf_counter() - begun


def build_attention_table(frame: pd.DataFrame, title: str) -> Table:
    table = Table("tokens", "nodes", "way", "ms", "GB/s", title=title)
    for row in frame.itertuples():
        table.add_row(str(row.tokens), str(row.nodes), str(row.way), f"{row.ms:.2f}", f"{row.gb_per_s:.1f}")
    return table


def main() -> int:
    parser = Parser("attention", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="1b")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--lengths", type=parse_numbers, default=LENGTHS, metavar="N,N", help="tokens in the KV store")
    parser.add_argument("--nodes", type=parse_numbers, default=NODES, metavar="N,N", help="rows of a forward")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    frame = measure(options.shape, pick_device(options.device), options.lengths, options.nodes)
    out = options.out or Path(f"reports/attention-{options.shape}.csv")
    write_atomic(out, format_csv(frame))
    console.print(build_attention_table(frame, f"Attention of {options.shape}"), f"in {out}", sep="\n")
    return 0


if __name__ == "__main__":
    exit_with(main)
