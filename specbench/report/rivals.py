"""What run.json tells of the other ways to decode autoregressively: a row per engine and dtype, the run's own first."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

MARGIN = 0.03  # a baseline slower than another way by more than this is alarmed

Rates = Sequence[Mapping[str, Any]]  # engine, dtype, tokens_per_second of each round


def _ratios(rates: Rates) -> dict[str, list[float]]:
    """By the rival's name, its rate over the run's own, round by round."""
    if not rates:
        return {}
    own, *rivals = (way["tokens_per_second"] for way in rates)
    names = [f"{way['engine']} {way['dtype']}" for way in rates[1:]]
    return {name: [a / b for a, b in zip(rival, own, strict=True)] for name, rival in zip(names, rivals, strict=True)}


def faster(rates: Rates) -> dict[str, float]:
    """Ways that beat the run's own by more than MARGIN in every round, with the median ratio."""
    return {name: statistics.median(values) for name, values in _ratios(rates).items() if min(values) > 1 + MARGIN}


def described(rates: Rates) -> str:
    """`native bfloat16 0.79×, hf float32 0.96×`: each rival's rate over the run's own, the median of the rounds."""
    return ", ".join(f"{name} {statistics.median(values):.2f}×" for name, values in _ratios(rates).items())
