"""What was timed before the run: autoregressive decoding by other engines, and forwards by their rows."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Rates = Sequence[Mapping[str, Any]]  # engine, dtype, tokens_per_second of each round
MARGIN = 0.03  # a baseline slower than another engine by more than this raises an alarm
ROW_MARGIN = 0.1  # a forward slower than one over more rows by more than this, in every round, raises one
ROUNDS = 5  # fewer rounds say nothing about rows


def _compute_ratios(rates: Rates) -> dict[str, list[float]]:
    """Return, by name, each other engine's rate over the run's own, round by round."""
    if not rates:
        return {}
    own = rates[0]["tokens_per_second"]
    return {
        f"{rival['engine']} {rival['dtype']}": [a / b for a, b in zip(rival["tokens_per_second"], own, strict=True)]
        for rival in rates[1:]
    }


def find_faster(rates: Rates) -> dict[str, float]:
    """Return the engines that beat the run's own by more than MARGIN in every round, with the median ratio."""
    return {name: statistics.median(values) for name, values in _compute_ratios(rates).items() if min(values) > 1 + MARGIN}


def find_slower_rows(times: Mapping[int, Sequence[float]]) -> Iterator[tuple[int, int, float]]:
    """Yield numbers of rows that in every round took longer than some larger number by ROW_MARGIN, that number, the median ratio.

    times: milliseconds of a forward by its rows, round by round. Each number of rows comes once, with its fastest superior.
    """
    for few in sorted(times):
        ratios = {more: [a / b for a, b in zip(times[few], times[more], strict=True)] for more in times if more > few}
        beyond = {
            more: statistics.median(values)
            for more, values in ratios.items()
            if len(values) >= ROUNDS and min(values) > 1 + ROW_MARGIN
        }
        if beyond:
            more = max(beyond, key=lambda rows: beyond[rows])
            yield few, more, beyond[more]


def describe_rivals(rates: Rates) -> str:
    """Return `native bfloat16 0.79×, hf float32 0.96×`: median rates over the run's own."""
    return ", ".join(f"{name} {statistics.median(values):.2f}×" for name, values in _compute_ratios(rates).items())
