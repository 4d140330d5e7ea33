"""Measured runs as rows with the columns of published ones, matched by target, precision and temperature."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from specbench.analysis.loaded_run import LoadedRun
from specbench.analysis.summary import summarise
from specbench.paper.items import Item

TARGETS = {
    "vicuna_7b": "Vicuna-7B-v1.3",
    "vicuna_13b": "Vicuna-13B-v1.3",
    "vicuna_33b": "Vicuna-33B-v1.3",
}
NAMES = {
    "pld": "PLD",
    "sps": "SpS",
    "medusa": "Medusa",
    "hydra_heads": "Hydra",
    "eagle": "EAGLE",
    "eagle2": "EAGLE-2",
    "eagle3": "EAGLE-3",
    "lookahead": "Lookahead",
    "rest": "REST",
    "sam_decoding": "SAM-Decoding",
    "sam_eagle2": "SAM-Decoding + EAGLE-2",
}
METHODS = {preset: name for method, name in NAMES.items() for preset in (f"{method}_spec_bench", method)}  # first choice first
METHODS |= dict.fromkeys(("token_recycling_spec_bench", "token_recycling_warm"), "Token Recycling")
COLUMNS = ["run", "device", "target", "method", "task", "temperature", "dtype", "speedup", "mean_accepted_tokens", "kind"]


def collect_measured(runs: Sequence[LoadedRun]) -> pd.DataFrame:
    """Return rows of runs whose target has published values. speedup: Spec-Bench's estimator, as in the published tables."""
    alone = [run for run in runs if (run.config.get("batch") or 1) == 1]  # the published numbers are of single sequences
    rows = [_select_rows(run) for run in alone if (run.config.get("target") or {}).get("name") in TARGETS]
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=COLUMNS)


def _select_rows(run: LoadedRun) -> pd.DataFrame:
    rows = summarise(run)
    rows = rows[rows["method"].isin(METHODS) & (rows["kind"] == "measured")]
    rank = rows["method"].map(list(METHODS).index)
    rows = rows.assign(method=rows["method"].map(METHODS), preset=rows["method"], speedup=rows["speedup_spec_bench"], rank=rank)
    rows = rows.sort_values("rank").drop_duplicates(["method", "task"])
    return rows.assign(target=rows["target"].map(TARGETS), temperature=rows["temperature"].astype(float))[COLUMNS]


def match_rows(item: Item, rows: pd.DataFrame) -> pd.DataFrame:
    """Return the measured rows that match an item in task, target, dtype and temperature, apart from the column it varies.

    The device may differ; the caption names it.
    """
    published = item.rows()
    for name in ("task", "target", "dtype", "temperature"):
        if name == "task" or name != item.across:
            rows = rows[rows[name].isin(published[name].unique())]
    return rows
