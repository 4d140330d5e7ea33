"""Both sides of a comparison, read from run directories: facts that must be equal, counters and time ratios."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from specbench.analysis.loaded_run import LoadedRun, read_run
from specbench.analysis.metrics import QUESTION
from specbench.errors import InputError, abbreviate, suggest_nearest
from specbench.records.nested import flatten
from specbench.records.run_directory import RunDirectory
from specbench.records.trial import BASELINE, PER_STEP, Trial

PLACE = ("dtype", "device.name", "machine.cpu", "machine.cores", "machine.threads", "machine.architecture")
DATA = ("suite_sha256", "target_sha256", "draft_sha256", "turns")
SOFTWARE = ("versions.python", "versions.torch", "versions.transformers", "versions.numpy")
GROWS = ("method", "engine", "forward")  # facts of which a run with more methods has more than the reference
COUNTERS = (
    *("prompt_sha256", "new_tokens", "finish_reason", "output_sha256", "steps", "target_forwards", "draft_forwards"),
    *PER_STEP,
)
LATEST = 10  # runs of a folder that a new run is compared with


@dataclass(frozen=True)
class CounterDifference:
    """Number of turns of a method that differ from the reference, by counter."""

    method: str
    turns: int
    differing: dict[str, int]


def read_side(path: Path) -> list[LoadedRun]:
    """Read a run, or the latest runs of a folder of runs. Raises InputError if the path is neither."""
    if RunDirectory(path).is_run():
        return [read_run(path)]
    folders = sorted(run.parent for run in path.glob("*/config.yaml"))
    if not folders:
        raise InputError(f"{path}: neither a run nor a folder of runs")
    runs = sorted((read_run(folder) for folder in folders), key=lambda run: str(run.provenance.get("started")))
    return runs[-LATEST:]


def check_comparable(runs: Sequence[LoadedRun], factors: Sequence[str]) -> None:
    """Raise InputError for the first fact, apart from the factors, in which a run differs from the first one, its reference."""
    first, *others = (dict(_iter_facts(run)) for run in runs)
    _check_factors(factors, sorted(first.keys() | set().union(*others)))
    for run, other in zip(runs[1:], others, strict=True):
        for name in sorted(first.keys() | other.keys()):
            if first.get(name) != other.get(name) and not _is_under(name, factors) and not _is_added(name, first, other):
                old, new = (_show_fact(facts, name) for facts in (first, other))
                difference = f"{run.name} is not comparable with {runs[0].name}: {name} is {new}, not {old}"
                raise InputError(f"{difference}; --factor {name} allows it to differ")


def _show_fact(facts: Mapping[str, Any], name: str) -> str:
    if name not in facts:
        return "absent"
    return "null" if facts[name] is None else f"{facts[name]!s:.60}"


def _check_factors(factors: Sequence[str], known: Sequence[str]) -> None:
    for factor in factors:
        if not any(_is_under(name, (factor,)) for name in known):
            raise InputError(f"--factor {factor}: the runs have no such fact{suggest_nearest(factor, known)}")


def _is_added(name: str, first: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether the name belongs to a method or engine that the reference does not have at all."""
    group, _, label = name.partition(".")
    entry = f"{group}.{label.partition('.')[0]}"
    return group in GROWS and not any(_is_under(known, (entry,)) for known in first)


def _is_under(name: str, factors: Sequence[str]) -> bool:
    return any(name == factor or name.startswith(f"{factor}.") for factor in factors)


def _iter_facts(run: LoadedRun) -> Iterator[tuple[str, Any]]:
    """Yield dotted names and values: all settings, and the place, data and software in run.json."""
    yield from flatten(
        {key: value for key, value in ({"batch": 1, "concurrency": 1} | dict(run.config)).items() if key != "check_baseline"}
    )
    about = dict(flatten(run.provenance))
    for name in (*PLACE, *DATA, *SOFTWARE):
        yield name, about.get(name)
    forwards = {"target": {}} | (run.provenance.get("forward") or {})  # older runs have none
    for part, forward in forwards.items():
        yield f"forward.{part}", forward.get("kind", "eager")
    yield from flatten({"products": forwards["target"].get("products") or {}})
    yield "sums", forwards["target"].get("sums")
    if checkpoints := run.provenance.get("checkpoints"):
        yield from flatten({"checkpoints": checkpoints})
    for method, stores in (run.provenance.get("leakage") or {}).items():
        yield f"method.{method}.datastores", tuple(store.get("sha256") for store in stores)


def check_methods(reference: LoadedRun, new: LoadedRun) -> None:
    """Raise InputError for a method of the reference that the new run lacks."""
    missing = sorted({trial.method for trial in reference.trials} - {trial.method for trial in new.trials})
    if missing:
        raise InputError(f"{new.name} has no method {abbreviate(missing)}, which {reference.name} has")


def compare_counters(reference: LoadedRun, new: LoadedRun) -> list[CounterDifference]:
    """Compare every method of the reference, turn by turn. Raises InputError for a turn that the new run lacks."""
    trials = {trial.key: trial for trial in new.trials}
    lacking = [trial for trial in reference.trials if trial.key not in trials]
    if lacking:
        raise InputError(f"{new.name} lacks {len(lacking)} of the {len(reference.trials)} turns of {reference.name}")
    by_method: dict[str, list[tuple[Trial, Trial]]] = {}
    for trial in reference.trials:
        by_method.setdefault(trial.method, []).append((trial, trials[trial.key]))
    return [_count_differences(method, pairs) for method, pairs in by_method.items()]


def compare_paired_counters(run: LoadedRun, methods: Sequence[str], engine: str) -> list[CounterDifference]:
    """Compare every method with itself on another engine of the same run."""
    trials = {trial.key: trial for trial in run.trials}
    differences = []
    for method in methods:
        rows = [trial for trial in run.trials if trial.method == method]
        pairs = [(trials.get((f"{method}@{engine}", *trial.key[1:])), trial) for trial in rows]
        differences.append(_count_differences(method, [(old, new) for old, new in pairs if old is not None]))
    return differences


def _count_differences(method: str, pairs: Sequence[tuple[Trial, Trial]]) -> CounterDifference:
    differing = {name: sum(getattr(old, name) != getattr(new, name) for old, new in pairs) for name in COUNTERS}
    return CounterDifference(method, len(pairs), {name: count for name, count in differing.items() if count})


def compute_log_ratios(run: LoadedRun, method: str, over: str, by_repeat: bool = False) -> pd.Series:
    """Return, by (task, question_id) and optionally repeat, the log of a method's rate over another's in the same run.

    Of a turn's repeats with the same text the fastest counts, as disturbances only add time. Questions with a failed turn are
    left out.
    """
    keys = [*QUESTION[1:], *(["repeat"] if by_repeat else [])]
    ratios: pd.Series = (_compute_log_rates(run, method, keys) - _compute_log_rates(run, over, keys)).dropna()
    return ratios


def _compute_log_rates(run: LoadedRun, method: str, keys: list[str]) -> pd.Series:
    failed = run.turns.groupby(QUESTION)["failed"].transform("any").astype(bool)
    turns = run.turns[~failed & (run.turns["method"] == method)]
    texts = turns.groupby([*keys, "turn", "seed"]).agg({"new_tokens": "first", "seconds": "min"})
    sums = texts.groupby(level=keys).sum()
    return pd.Series(np.log(sums["new_tokens"] / sums["seconds"]))


def align_log_ratios(runs: Sequence[LoadedRun], method: str, over: str) -> pd.DataFrame:
    """Return log ratios by (task, question_id), one column per run that has both methods."""
    return pd.DataFrame({run.name: compute_log_ratios(run, method, over) for run in runs}).dropna(axis="columns", how="all")


def align_log_rates(runs: Sequence[LoadedRun], method: str) -> pd.DataFrame:
    """Return logs of a method's own rate by (task, question_id), one column per run that has it."""
    rates = {run.name: _compute_log_rates(run, method, QUESTION[1:]) for run in runs}
    return pd.DataFrame(rates).dropna(axis="columns", how="all")


def find_other_place(reference: LoadedRun, new: LoadedRun) -> str | None:
    """Return the first fact about machine and device in which the runs differ: their seconds cannot be compared then."""
    first, second = (dict(flatten(run.provenance)) for run in (reference, new))
    return next((name for name in PLACE if first.get(name) != second.get(name)), None)


def check_one_place(runs: Sequence[LoadedRun]) -> None:
    """Raise InputError for new runs of several machines or devices: their seconds cannot be pooled."""
    for run in runs[:-1]:
        if name := find_other_place(run, runs[-1]):
            raise InputError(f"{run.name} and {runs[-1].name}, both new, differ in {name}: expected new runs of one machine")


def is_copy(reference: LoadedRun, new: LoadedRun) -> bool:
    """Return whether both hold the same measurements: two separate runs never take equal times in every turn."""
    first, second = ({trial.key: (trial.prefill_s, trial.decode_s) for trial in run.trials} for run in (reference, new))
    return first == second


def list_ratios(run: LoadedRun) -> list[tuple[str, str]]:
    """Return the ratios of a run: each method over autoregressive decoding, and this over that of other engines."""
    labels = list(dict.fromkeys(trial.method for trial in run.trials if trial.kind == "measured"))
    methods = [(label, BASELINE) for label in labels if label != BASELINE and "@" not in label]
    return methods + [(BASELINE, label) for label in labels if label.startswith(f"{BASELINE}@")]
