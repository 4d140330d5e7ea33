"""How long a run may take, before its target is loaded: from the bytes that its forwards move, at the memory's measured speed.

At batch 1 a forward over one token reads all weights and the sequence's KV entries once; a prompt's forward multiplies every
weight with every token. Of a mixture of experts, a token takes a part of the weights. A method that drafts well takes less, and a
model whose layers are small more.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

import torch

from specbench.diagnose.roofline import measure_copy_bandwidth, measure_read_bandwidth
from specbench.machine.devices import synchronize
from specbench.running.needs import Minutes, RunNeed

PROBE = 1 << 27  # bytes that are read
ROWS, WIDTH = 256, 1024  # of the products that are timed


def estimate_minutes(
    need: RunNeed, prompts: Sequence[int], new_tokens: int, labels: Sequence[str], repeats: int, batch: int = 1
) -> Minutes:
    """Return the minutes of every method, by label. prompts: tokens of each turn's; `batch` of them share a forward."""
    speed, products = measure_speed(need.device), measure_products(need.device, need.dtype)
    read = (need.target.weights * need.active + need.target.kv / 2) / speed * new_tokens * len(prompts) / batch
    multiplied = 2 * need.parameters * need.active / products * sum(prompts)
    return Minutes(dict.fromkeys(labels, repeats * (read + multiplied) / 60))


def measure_speed(device: torch.device) -> float:
    """Return bytes per second, from a short probe."""
    if device.type == "cpu":
        return measure_read_bandwidth(PROBE, repeats=3)
    return measure_copy_bandwidth(device, PROBE, repeats=3)


def measure_products(device: torch.device, dtype: torch.dtype) -> float:
    """Return the multiplications and additions per second of a prompt's products, from a short probe."""
    x, weight = (torch.ones(rows, WIDTH, device=device, dtype=dtype) for rows in (ROWS, WIDTH))
    seconds = []
    for _ in range(3):
        synchronize(device)
        started = perf_counter()
        torch.nn.functional.linear(x, weight)
        synchronize(device)
        seconds.append(perf_counter() - started)
    return 2 * ROWS * WIDTH * WIDTH / min(seconds)
