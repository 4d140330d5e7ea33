"""The training-free drafters of the embedded target: speedups by task, and SAM-Decoding beside EAGLE-2 against either alone."""

from pathlib import Path

import pandas as pd

from benchmarks import embedded
from specbench.analysis.loaded_run import load
from specbench.analysis.statistics import Interval
from specbench.analysis.summary import summarise

BOUNDS = {"sam_decoding": 1.3, "token_recycling": 1.15, "rest": 1.3, "lookahead": 1.0, "self_speculative": 1.1}
METHODS = (*BOUNDS, "sam_decoding_static", "sam_eagle2")
HYBRID = ("sam_eagle2", "sam_decoding", "eagle2")  # and its parts


def cells(out: Path, *overrides: str) -> pd.DataFrame:
    """summary.csv by method and task."""
    methods = dict.fromkeys(["pld", "token_recycling_warm", *METHODS, *HYBRID])
    run = load(embedded.run(out, f"method=[{','.join(methods)}]", "check_baseline=false", *overrides))
    return summarise(run).set_index(["method", "task"])


def interval(rows: pd.DataFrame, label: str, task: str) -> Interval:
    row = rows.loc[(label, task)]
    return Interval(row["speedup"], row["speedup_low"], row["speedup_high"])
