"""summary.csv: one row per method and task, plus task = overall, of one run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from specbench.analysis import disturbance, equality, metrics, statistics
from specbench.analysis.loaded_run import LoadedRun, find_first, order_methods, order_tasks, read_run
from specbench.analysis.metrics import CELL, QUESTION
from specbench.analysis.prompting import describe_ends, describe_template
from specbench.records.run_directory import RunDirectory
from specbench.records.trial import BASELINE, OVERALL

PERCENTILES = {"p50": 0.5, "p90": 0.9}
LATENCIES = [f"ms_per_token_{name}{side}" for name in PERCENTILES for side in ("", "_low", "_high")]
SEEDS = ["speedup_seed_sd", "mean_accepted_tokens_seed_sd"]
EVIDENCE = ["lossless_texts", "lossless_tokens", "lossless_wrong_at_most"]  # the evidence for the word in `lossless`
GAIN = ["engine_speedup", "engine_speedup_low", "engine_speedup_high"]  # over the same engine's autoregressive decoding
UNKNOWN = "not certified"
COLUMNS = [
    "run", "target", "shape", "engine", "dtype", "device", "temperature", "method", "task", "questions", "repeats",
    "tokens_per_second", "speedup", "speedup_low", "speedup_high", "speedup_spec_bench", "mean_accepted_tokens",
    "acceptance_rate", "conversion", "identical", "lossless", "peak_memory_mb", "kind", "state",
    "speedup_pooled", "speedup_decode", "speedup_with_failures", "speedup_median", "rank_best", "rank_worst", *LATENCIES,
    "decode_tokens_per_second", "accuracy", "tokens_per_forward", "conversion_low", "conversion_high", "joules_per_token",
    "drafted", "errors", "unpaired", *SEEDS, *EVIDENCE, *disturbance.COUNTS, "memory_share", "ends", "template", "batch",
    *GAIN, "concurrency",
]  # fmt: skip


def summarise(run: LoadedRun) -> pd.DataFrame:
    """Return the rows of summary.csv: one for every method and task that was run, nan where it has no number."""
    questions = metrics.build_question_frame(run.turns)
    pairs = metrics.pair_with_baseline(questions)
    cells = metrics.summarise_trials(run.frame)
    columns = (
        metrics.pool_counts(pairs),
        metrics.compute_spec_bench(pairs),
        equality.compute_identical_share(run.frame),
        compute_own_gain(questions),
        compute_intervals(questions, pairs),
        compute_accuracy(run),
        metrics.compute_seed_spread(pairs),
        compute_latency_percentiles(pairs),
        disturbance.count_disturbed(run.attempts, run.trials, run.disturbed),
        compute_ranks(metrics.compute_question_ratios(pairs), yardsticks=cells.index[cells["kind"] == "synthetic"]),
    )
    for more in columns:
        cells = cells.join(more)
    cells["unpaired"] = pd.Series(metrics.count_unpaired(questions, pairs), dtype=float).reindex(cells.index)
    rows = cells.reset_index().assign(**identify_run(run))
    rows["unpaired"] *= rows["batch"]
    first = ~rows["method"].str.contains("@")
    rows.loc[first, GAIN] = rows.loc[first, ["speedup", "speedup_low", "speedup_high"]].to_numpy()
    rows["lossless"] = [str(run.certified.get(method, UNKNOWN)) for method in rows["method"]]
    rows[EVIDENCE] = pd.DataFrame([_get_evidence(run, method) for method in rows["method"]], index=rows.index, dtype=float)
    rows["memory_share"] = _compute_memory_share(run, rows)
    rows["engine"] = [find_engine(run, method) for method in rows["method"]]
    sampled = is_sampled(rows["temperature"].iloc[0])  # greedy repeats all have the same text
    rows.loc[(rows["method"] == BASELINE) | (not sampled), SEEDS] = np.nan
    counts = ["questions", "repeats", "errors", "unpaired"]
    rows[counts] = rows[counts].fillna(0).astype(int)
    return _sort_rows(rows, run)[COLUMNS]


def _get_evidence(run: LoadedRun, method: str) -> tuple[float, float, float]:
    """Return the number of texts compared, the tokens of the longest, and the upper limit of the rate of wrong ones, or nan."""
    known = run.certified.get(method)
    if known is None or not known.evidence.texts:
        return np.nan, np.nan, np.nan
    return known.evidence.texts, known.evidence.tokens, known.evidence.most_wrong


def _compute_memory_share(run: LoadedRun, rows: pd.DataFrame) -> pd.Series:
    """Return the share of the memory's read bandwidth that autoregressive decoding uses for its weights: 1 is the machine's
    limit.

    nan for a batch, which reads the weights only once per step.
    """
    memory = run.provenance.get("memory") or {}
    second = memory.get("read_bytes_per_second", np.nan)
    shares: pd.Series = rows["decode_tokens_per_second"] * memory.get("weight_bytes", np.nan) / second
    return shares.where((rows["method"] == BASELINE) & (rows["batch"] == 1))


def identify_run(run: LoadedRun) -> dict[str, Any]:
    """Return the columns that identify the run of a row; "" where config.yaml and run.json do not say."""
    config, provenance = run.config, run.provenance
    return {
        "run": run.name,
        "target": find_first(config, "target.name"),
        "shape": find_first(config, "target.shape"),
        "dtype": find_first(provenance, "dtype") or find_first(config, "target.dtype"),
        "device": find_first(provenance, "device.name", "device.kind"),
        "temperature": find_first(config, "sampling.temperature"),
        "batch": find_first(config, "batch") or 1,
        "concurrency": find_first(config, "concurrency") or 1,
        "ends": describe_ends(config.get("sampling") or {}),
        "template": describe_template(config.get("target") or {}),
    }


def find_engine(run: LoadedRun, label: str) -> str:
    """Return the engine named in method@engine, else the first engine of the config, "" if it has none."""
    return label.partition("@")[2] or next(iter(run.config.get("engine") or {}), "")


def compute_accuracy(run: LoadedRun) -> pd.Series:
    """Return, by (method, task), the mean score of the first repeat's answers that the suite could score."""
    tasks: dict[Any, str] = {trial.question_id: trial.task for trial in run.trials}
    scores = {tuple(map(row.get, ("method", "question_id", "turn"))): row.get("score") for row in run.texts}
    rows = [(method, tasks.get(question), score) for (method, question, _), score in scores.items()]
    frame = pd.DataFrame(rows, columns=[*CELL, "accuracy"]).astype({"accuracy": float}).dropna()
    means: pd.Series = metrics.add_overall(frame).groupby(CELL)["accuracy"].mean()
    return means


def compute_intervals(questions: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """Return geometric means over questions with limits, by (method, task); overall weighs all tasks the same."""
    ratios = metrics.compute_question_ratios(pairs)
    failed = metrics.find_failed_questions(questions).assign(log_speedup=0.0)
    done = metrics.add_overall(ratios)[CELL].drop_duplicates()
    cells = [(str(method), str(task)) for method, task in done.itertuples(index=False)]
    values = [_build_interval_row(_select_cell(ratios, *cell), _select_cell(failed, *cell)) for cell in cells]
    columns = [f"{name}{side}" for name in ("speedup", "conversion") for side in ("", "_low", "_high")]
    columns += ["speedup_decode", "speedup_with_failures", "speedup_median"]
    return pd.DataFrame(values, index=pd.MultiIndex.from_frame(done), columns=columns, dtype=float)


def compute_own_gain(questions: pd.DataFrame) -> pd.DataFrame:
    """Return the speedups of engines but the first over their own autoregressive decoding, with limits, by (method, task)."""
    others = questions[questions["method"].str.contains("@")]
    ratios = metrics.compute_question_ratios(metrics.pair_with_own_baseline(others))
    cells = metrics.add_overall(ratios)[CELL].drop_duplicates()
    strata = [_split_strata(_select_cell(ratios, str(method), str(task)), "log_speedup") for method, task in cells.to_numpy()]
    values = [astuple(statistics.speedup(one)) for one in strata]
    return pd.DataFrame(values, index=pd.MultiIndex.from_frame(cells), columns=GAIN, dtype=float)


def compute_latency_percentiles(pairs: pd.DataFrame) -> pd.DataFrame:
    """Return percentiles over questions of milliseconds per token by (method, task), with order statistics as limits."""
    groups = metrics.add_overall(metrics.compute_question_latencies(pairs)).groupby(CELL)["ms_per_token"]
    rows = {
        cell: [
            value
            for share in PERCENTILES.values()
            for value in astuple(statistics.quantile(values.dropna().to_numpy(dtype=float), share))
        ]
        for cell, values in groups
    }
    return pd.DataFrame(list(rows.values()), index=pd.MultiIndex.from_tuples(rows, names=CELL), columns=LATENCIES, dtype=float)


def compute_ranks(ratios: pd.DataFrame, yardsticks: pd.Index) -> pd.DataFrame:
    """Return the best and the worst possible rank by (method, task) with a speedup; yardsticks, (method, task), have no rank."""
    barred = {method for method, _ in yardsticks}
    wide = ratios[~ratios["method"].isin(barred)].pivot(index=QUESTION[1:], columns="method", values="log_speedup")
    tasks = {str(task): rows for task, rows in wide.groupby(level="task", sort=False)}
    ranks: dict[tuple[str, str], tuple[int, int]] = {}
    for name, parts in {**{task: [rows] for task, rows in tasks.items()}, OVERALL: list(tasks.values())}.items():
        timed = [method for method in wide.columns if any(rows[method].notna().any() for rows in parts)]
        strata = {str(method): [rows[method].to_numpy(dtype=float) for rows in parts] for method in timed}
        ranks |= {(method, name): limits for method, limits in statistics.rank_methods(strata).items()}
    index = pd.MultiIndex.from_tuples(ranks, names=CELL)
    return pd.DataFrame(ranks.values(), index=index, columns=["rank_best", "rank_worst"], dtype=float)


def _select_cell(rows: pd.DataFrame, method: str, task: str) -> pd.DataFrame:
    return rows[(rows["method"] == method) & ((rows["task"] == task) | (task == OVERALL))]


def _build_interval_row(ratios: pd.DataFrame, failed: pd.DataFrame) -> list[float]:
    speedup = statistics.speedup(_split_strata(ratios, "log_speedup"))
    conversion = statistics.speedup(_split_strata(ratios, "log_conversion"))
    decode = _geometric_mean(_split_strata(ratios, "log_speedup_decode"))
    with_failures = _geometric_mean(_split_strata(pd.concat([ratios, failed]) if len(failed) else ratios, "log_speedup"))
    medians = [np.median(values, keepdims=True) for values in _split_strata(ratios, "log_speedup")]
    return [*astuple(speedup), *astuple(conversion), decode, with_failures, _geometric_mean(medians)]


def _split_strata(rows: pd.DataFrame, column: str) -> list[statistics.Array]:
    return [values.to_numpy(dtype=float) for _, values in rows.dropna(subset=[column]).groupby("task")[column]]


def _geometric_mean(strata: Sequence[statistics.Array]) -> float:
    return float(np.exp(np.mean([values.mean() for values in strata]))) if strata else float("nan")


def is_sampled(temperature: Any) -> bool:
    """Return whether the temperature is a number above 0."""
    return isinstance(temperature, Real) and float(temperature) > 0


def _sort_rows(rows: pd.DataFrame, run: LoadedRun) -> pd.DataFrame:
    methods, tasks = order_methods([run]), [*order_tasks(run), OVERALL]
    position = rows["method"].map(methods.index) * len(tasks) + rows["task"].map(tasks.index)
    return rows.iloc[position.argsort(kind="stable")].reset_index(drop=True)


def write_summary(run_dir: Path) -> pd.DataFrame:
    """Write the run directory's own summary.csv and return its rows. Raises InputError when it is not a run."""
    summary = summarise(read_run(run_dir))
    RunDirectory(run_dir).write_summary(format_csv(summary))
    return summary


def format_csv(summary: pd.DataFrame) -> str:
    """Return rows as CSV: six significant digits, empty where there is no number."""
    return str(summary.to_csv(index=False, float_format="%.6g"))
