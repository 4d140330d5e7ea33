"""Measured runs in the columns of published rows, where target, precision and temperature are the same."""

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
METHODS = {  # the preset that runs as Spec-Bench does comes first
    "pld_spec_bench": "PLD",
    "pld": "PLD",
    "sps_spec_bench": "SpS",
    "sps": "SpS",
    "medusa_spec_bench": "Medusa",
    "medusa": "Medusa",
    "hydra_heads_spec_bench": "Hydra",
    "hydra_heads": "Hydra",
    "eagle_spec_bench": "EAGLE",
    "eagle": "EAGLE",
    "eagle2_spec_bench": "EAGLE-2",
    "eagle2": "EAGLE-2",
    "eagle3_spec_bench": "EAGLE-3",
    "eagle3": "EAGLE-3",
    "lookahead_spec_bench": "Lookahead",
    "lookahead": "Lookahead",
    "rest_spec_bench": "REST",
    "rest": "REST",
    "token_recycling_spec_bench": "Token Recycling",
    "token_recycling_warm": "Token Recycling",
    "sam_decoding": "SAM-Decoding",
    "sam_eagle2_spec_bench": "SAM-Decoding + EAGLE-2",
    "sam_eagle2": "SAM-Decoding + EAGLE-2",
}
COLUMNS = ["run", "device", "target", "method", "task", "temperature", "dtype", "speedup", "mean_accepted_tokens", "kind"]


def collect_measured(runs: Sequence[LoadedRun]) -> pd.DataFrame:
    """Rows of runs of a target that was published of. speedup: Spec-Bench's estimator, as in the tables beside it."""
    found = [_select_rows(run) for run in runs if (run.config.get("target") or {}).get("name") in TARGETS]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=COLUMNS)


def _select_rows(run: LoadedRun) -> pd.DataFrame:
    rows = summarise(run)
    rows = rows[rows["method"].isin(METHODS) & (rows["kind"] == "measured")]
    rank = rows["method"].map(list(METHODS).index)
    rows = rows.assign(method=rows["method"].map(METHODS), preset=rows["method"], speedup=rows["speedup_spec_bench"], rank=rank)
    rows = rows.sort_values("rank").drop_duplicates(["method", "task"])
    return rows.assign(target=rows["target"].map(TARGETS), temperature=rows["temperature"].astype(float))[COLUMNS]


def match_rows(item: Item, rows: pd.DataFrame) -> pd.DataFrame:
    """Those that stand beside an item: equal in all that it does not go across, but the device, which is said."""
    there = item.rows()
    fixed = [name for name in ("target", "dtype", "temperature") if name != item.across]
    found = rows[rows["task"].isin(there["task"])]
    for name in fixed:
        found = found[found[name].isin(there[name].unique())]
    return found
