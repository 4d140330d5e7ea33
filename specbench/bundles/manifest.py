"""What a bundle says of itself: its files, and the numbers and alarms that its records lead to."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypedDict

import pandas as pd

from specbench import __version__
from specbench.analysis.loaded_run import LoadedRun, read_run
from specbench.analysis.summary import identify_run, summarise
from specbench.bundles.container import RUN, HeldFile
from specbench.errors import InputError
from specbench.records.files import read_object
from specbench.records.stripped import MARK
from specbench.records.trial import OVERALL
from specbench.records.typed import Label, Name, check
from specbench.report.alarm import Alarm
from specbench.report.alarms import find_alarms

SCHEMA = 1
CLAIMED = (
    "method", "task", "questions", "repeats", "kind", "state", "lossless", "errors", "identical",
    "tokens_per_second", "speedup", "speedup_low", "speedup_high", "mean_accepted_tokens", "acceptance_rate",
    "tokens_per_forward", "conversion", "conversion_low", "conversion_high",
)  # fmt: skip
TOLERANCE = 1e-5  # relative: machines add in other orders


class ListedAlarm(TypedDict):
    level: Literal["alarm", "notice"]
    method: Label
    task: Label
    message: str


class Manifest(TypedDict):
    """specbench, code_sha256: that made the bundle. about: columns that identify the run; claims: CLAIMED, a row per cell."""

    schema: int
    specbench: Name
    code_sha256: Name
    run: Label
    texts: Literal["kept", "hashes"]
    about: dict[str, Any]
    claims: list[dict[str, Any]]
    alarms: list[ListedAlarm]
    files: dict[str, HeldFile]


def read_staged(folder: Path, name: str) -> LoadedRun:
    """Read the run in the folder of a bundle, with the bundle's own certificates alone. name: the run's."""
    return replace(read_run(folder / RUN, [folder / "certificates"]), name=name)


def build_manifest(run: LoadedRun, files: Mapping[str, HeldFile], code_sha256: str) -> Manifest:
    """Return the manifest of a run's bundle. files: all others in it."""
    summary = summarise(run)
    return {
        "schema": SCHEMA,
        "specbench": __version__,
        "code_sha256": code_sha256,
        "run": run.name,
        "texts": "hashes" if run.provenance.get(MARK) else "kept",
        "about": {name: _simplify(value) for name, value in identify_run(run).items()},
        "claims": [{name: _simplify(row[name]) for name in CLAIMED} for row in summary.to_dict("records")],
        "alarms": [_list_alarm(alarm) for alarm in find_alarms(run, summary)],
        "files": dict(files),
    }


def _list_alarm(alarm: Alarm) -> ListedAlarm:
    level: Literal["alarm", "notice"] = "alarm" if alarm.level == "alarm" else "notice"
    return {"level": level, "method": alarm.method, "task": alarm.task, "message": alarm.message}


def _simplify(value: Any) -> Any:
    """Return a cell as plain JSON: null without a number, six significant digits."""
    if isinstance(value, str) or value is None:
        return value
    if pd.isna(value) or math.isinf(value):
        return None
    return int(value) if float(value).is_integer() else float(f"{value:.6g}")


def read_manifest(path: Path) -> Manifest:
    """Read a manifest. Raises InputError for another file, and for another schema version."""
    plain = read_object(path)
    if plain.get("schema") != SCHEMA:
        raise InputError(f"{path}: schema version {plain.get('schema')!a}, this specbench reads version {SCHEMA}")
    if unknown := sorted(plain.keys() - Manifest.__required_keys__):
        raise InputError(f"{path}: unknown fields {unknown[:3]}")
    try:
        check(plain, Manifest, "")
    except InputError as problem:
        raise InputError(f"{path}: {problem}") from None
    manifest: Manifest = plain  # type: ignore[assignment]
    return manifest


def find_differences(listed: Manifest, computed: Manifest) -> Iterator[str]:
    """Yield, in words, what a manifest says other than its records."""
    head, computed_head = ({"run": one["run"], "texts": one["texts"]} for one in (listed, computed))
    yield from _compare_rows(head, computed_head, "bundle")
    yield from _compare_rows(listed["about"], computed["about"], "about")
    if len(listed["claims"]) != len(computed["claims"]):
        yield f"claims holds {len(listed['claims'])} rows, its records give {len(computed['claims'])}"
    for row, other in zip(listed["claims"], computed["claims"], strict=False):
        yield from _compare_rows(row, other, f"{other['method']} on {other['task']}")
    yield from _compare_alarms(listed["alarms"], computed["alarms"])


def _compare_rows(listed: Mapping[str, Any], computed: Mapping[str, Any], place: str) -> Iterator[str]:
    for name in [*computed, *(listed.keys() - computed.keys())]:
        if name not in listed or name not in computed or not _are_equal(listed[name], computed[name]):
            yield f"{place}: {name} is {listed.get(name)!a}, its records give {computed.get(name)!a}"


def _are_equal(one: Any, other: Any) -> bool:
    if isinstance(one, (int, float)) and isinstance(other, (int, float)) and not isinstance(one, bool):
        return math.isclose(one, other, rel_tol=TOLERANCE)
    return type(one) is type(other) and bool(one == other)


def _compare_alarms(listed: Sequence[ListedAlarm], computed: Sequence[ListedAlarm]) -> Iterator[str]:
    """Compare what is warned of; the words may be another version's."""
    said, due = (Counter((one["level"], one["method"], one["task"]) for one in alarms) for alarms in (listed, computed))
    for (level, method, task), count in (due - said).items():
        yield f"{count} {level} not listed: {method}{_place(task)}"
    for (level, method, task), count in (said - due).items():
        yield f"{count} {level} listed that its records do not raise: {method}{_place(task)}"


def _place(task: str) -> str:
    return "" if task == OVERALL else f" on {task}"
