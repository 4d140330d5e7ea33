"""Published values as rows, each with its source, from papers, leaderboards and repositories.

Columns: source, item (table or figure), device, target, method, task, temperature (nan if not given), dtype, batch,
setting (as printed), metric, value (nan if the text is not a number), text, kind (published).
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

DATA = Path(__file__).with_name("data")
SURVEY = "arXiv:2401.07851v3"
LEADERBOARD = "github:hemingkx/Spec-Bench Leaderboard.md"
METHODS = {  # spellings of a method, and its name here
    "SpS(vicuna-68m)": "SpS",
    "EAGLE1": "EAGLE",
    "EAGLE2": "EAGLE-2",
    "EAGLE3": "EAGLE-3",
    "Recycling": "Token Recycling",
    "TokenRecycling": "Token Recycling",
    "TokenRecycle": "Token Recycling",
    "SAMD[EAGLE2]": "SAM-Decoding + EAGLE-2",
    "SAM-Decoding[EAGLE2]": "SAM-Decoding + EAGLE-2",
    "SAM-Decoding(EAGLE-2)": "SAM-Decoding + EAGLE-2",
    "SAM-Decoding[TokenRecycle]": "SAM-Decoding + Token Recycling",
    "SAM-D": "SAM-Decoding",
    "Autoregressive": "autoregressive",
}
TASKS = {"multi_turn_conversation": "mt_bench", "conversation": "mt_bench"}
DTYPES = {"FP16": "float16", "fp16": "float16", "FP32": "float32", "BF16": "bfloat16"}


@cache
def read_published() -> pd.DataFrame:
    """Return all rows of data/published.csv."""
    rows = pd.read_csv(DATA / "published.csv", dtype=str, keep_default_na=False)
    rows = rows.rename(columns={"table_or_figure": "item", "value": "text"})
    settings = rows["setting"]
    rows["temperature"] = [_parse_temperature(text) for text in settings]
    rows["dtype"] = [next((name for printed, name in DTYPES.items() if printed in text), "") for text in settings]
    rows["batch"] = pd.to_numeric(settings.str.extract(r"batch[ =](?:size )?(\d+)", flags=re.IGNORECASE)[0], errors="coerce")
    rows["value"] = pd.to_numeric(rows["text"], errors="coerce")
    rows["method"] = rows["method"].replace(METHODS)
    rows["task"] = rows["task"].replace(TASKS)
    return rows.assign(kind="published")


def _parse_temperature(setting: str) -> float:
    if match := re.search(r"T ?= ?(\d+(?:\.\d+)?)", setting):
        return float(match[1])
    return 0.0 if "greedy" in setting.lower() else np.nan


@cache
def read_leaderboard() -> pd.DataFrame:
    """Return all rows of data/leaderboard.csv: Spec-Bench's by commit and day, and those of two methods' READMEs."""
    rows = pd.read_csv(DATA / "leaderboard.csv", dtype={"source": str, "method": str})
    rows["method"] = rows["method"].replace(METHODS)
    rows["day"] = rows["source"].str.extract(r"\((\d{4}-\d{2}-\d{2})\)")[0]
    return rows.assign(kind="published")
