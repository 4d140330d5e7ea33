"""Export a run for tools that track benchmark results: github-action-benchmark, Bencher, asv."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from specbench.analysis.loaded_run import LoadedRun
from specbench.analysis.summary import summarise
from specbench.records.files import write_atomic
from specbench.records.names import make_file_name
from specbench.records.trial import BASELINE

BIGGER = {"speedup": "×", "mean_accepted_tokens": "tokens", "tokens_per_second": "tokens/s"}  # summary columns and units
SMALLER = {"ms_per_token_p50": "ms", "ms_per_token_p90": "ms", "peak_memory_mb": "MB"}
MEASURES = {  # Bencher's slugs
    "speedup": "speedup",
    "mean_accepted_tokens": "mean-accepted-tokens",
    "tokens_per_second": "tokens-per-second",
    "conversion": "conversion",
    "ms_per_token_p50": "ms-per-token",
}
ASV = 2  # version of its formats
# asv fields that get our 95 % interval: the first two decide whether asv compare sees a difference, the last two give its ±.
ASV_LIMITS = {"stats_ci_99_a": "low", "stats_ci_99_b": "high", "stats_q_25": "low", "stats_q_75": "high"}


def export_github(run: LoadedRun, out: Path) -> list[Path]:
    """Write bigger.json and smaller.json, as the action needs one file per direction. range: half of the 95 % interval."""
    rows = summarise(run)
    return [
        _write_json(out / "bigger.json", _build_points(rows, BIGGER)),
        _write_json(out / "smaller.json", _build_points(rows, SMALLER)),
    ]


def _build_points(rows: pd.DataFrame, columns: Mapping[str, str]) -> list[dict[str, Any]]:
    points = []
    for row in rows.to_dict("records"):
        for column, unit in columns.items():
            if not _is_finite(row[column]):
                continue
            point = {"name": f"{_name_target(row)}/{row['method']}/{row['task']}: {column}", "unit": unit, "value": row[column]}
            low, high = (float(row.get(f"{column}_{side}", math.nan)) for side in ("low", "high"))
            if _is_finite(low) and _is_finite(high) and row["method"] != BASELINE:
                point |= {"range": f"± {(high - low) / 2:.3g}", "extra": f"95 % interval {low:.3g} to {high:.3g}"}
            points.append(point)
    return points


def export_bencher(run: LoadedRun, out: Path) -> list[Path]:
    """Write Bencher Metric Format with the limits of the intervals."""
    benchmarks: dict[str, dict[str, dict[str, float]]] = {}
    for row in summarise(run).to_dict("records"):
        measures = {slug: _build_metric(row, column) for column, slug in MEASURES.items() if _is_finite(row[column])}
        if measures:
            benchmarks[f"{_name_target(row)}/{row['method']}/{row['task']}"] = measures
    return [_write_json(out / "bencher.json", benchmarks)]


def _build_metric(row: Mapping[Any, Any], column: str) -> dict[str, float]:
    limits = {"lower_value": row.get(f"{column}_low"), "upper_value": row.get(f"{column}_high")}
    return {"value": row[column], **{name: limit for name, limit in limits.items() if limit is not None and _is_finite(limit)}}


def export_asv(run: LoadedRun, out: Path) -> list[Path]:
    """Write a results folder of airspeed velocity: milliseconds per token by method and task."""
    rows = summarise(run)
    machine, benchmark = _describe_machine(run), _build_benchmark(run, rows)
    result = _build_result(run, rows, machine, benchmark)
    folder = out / make_file_name(machine["machine"])
    stem = make_file_name(f"{result['commit_hash'][:8]}-{result['env_name']}")
    return [
        _write_json(out / "benchmarks.json", {"ms_per_token": benchmark, "version": ASV}),
        _write_json(folder / "machine.json", {**machine, "version": 1}),
        _write_json(folder / f"{stem}.json", result),
    ]


def _describe_machine(run: LoadedRun) -> dict[str, Any]:
    machine = run.provenance.get("machine") or {}
    name = str((run.provenance.get("device") or {}).get("name") or machine.get("cpu") or "machine").replace("/", "-")
    return {"machine": name, "os": machine.get("os"), "arch": machine.get("architecture"), "cpu": machine.get("cpu")}


def _build_benchmark(run: LoadedRun, rows: pd.DataFrame) -> dict[str, Any]:
    axes = ("method", "task")
    return {
        "code": "",
        "name": "ms_per_token",
        "param_names": axes,
        "params": [[repr(value) for value in rows[axis].unique()] for axis in axes],
        "timeout": 60.0,
        "type": "track",
        "unit": "ms",
        "version": _hash_questions(run),  # not the code's: asv hides results of other versions
    }


def _build_result(run: LoadedRun, rows: pd.DataFrame, machine: dict[str, Any], benchmark: dict[str, Any]) -> dict[str, Any]:
    versions, git = run.provenance.get("versions") or {}, run.provenance.get("git") or {}
    target, milliseconds = _name_target(rows.iloc[0].to_dict()), int(1000 * run.started)
    medians, *limits = _collect_times(rows)
    return {
        "commit_hash": str(git.get("commit") or "0" * 40),
        "env_name": target,
        "date": milliseconds,
        "params": {**machine, "target": target},  # one curve each
        "python": versions.get("python"),
        "requirements": {key: value for key, value in versions.items() if key != "python"},
        "env_vars": {},
        "result_columns": ["result", "params", "version", "started_at", *ASV_LIMITS],
        "results": {"ms_per_token": [medians, benchmark["params"], benchmark["version"], milliseconds, *limits]},
        "durations": {},
        "version": ASV,
    }


def _collect_times(rows: pd.DataFrame) -> list[list[float | None]]:
    """Return the medians and each of ASV_LIMITS, for every method on every task."""
    cells = {(row["method"], row["task"]): row for row in rows.to_dict("records")}
    ordered = [cells.get(cell) for cell in product(rows["method"].unique(), rows["task"].unique())]
    columns = ["ms_per_token_p50", *(f"ms_per_token_p50_{side}" for side in ASV_LIMITS.values())]
    return [[_get_value(row, column) for row in ordered] for column in columns]


def _hash_questions(run: LoadedRun) -> str:
    """Return a fingerprint of the questions and the settings of the run."""
    settings = [run.config.get(key) for key in ("suite", "task", "limit", "seed", "context", "threads", "profile", "sampling")]
    settings += [{key: chosen} for key in ("question", "category") if (chosen := run.config.get(key))]  # older runs have neither
    return sha256(json.dumps([settings, run.provenance.get("suite_sha256")], sort_keys=True).encode()).hexdigest()


def _get_value(row: Mapping[Any, Any] | None, column: str) -> float | None:
    return row[column] if row is not None and _is_finite(row[column]) else None


def _name_target(row: Mapping[Any, Any]) -> str:
    sizes = [f"{name}{row[name]}" for name in ("batch", "concurrency") if row[name] > 1]
    return "-".join(str(part) for part in (row["target"], row["shape"], row["dtype"], *sizes) if part)


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _write_json(path: Path, content: Any) -> Path:
    write_atomic(path, json.dumps(content, indent=1) + "\n")
    return path


FORMATS: dict[str, Callable[[LoadedRun, Path], list[Path]]] = {
    "github": export_github,
    "bencher": export_bencher,
    "asv": export_asv,
}
