"""A new run directory, or one that may be gone on with.

A run is resumed, or extended by more methods, further engines or more repeats; never by another config.
"""

import time
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

from specbench.errors import InputError
from specbench.records.run_directory import RunDirectory

RECORDED = ("versions", "git", "machine", "code_kind", "code_sha256")  # what may change when a run goes on, and is then noted
SAME = ("dtype", "suite_sha256", "target_sha256", "draft_sha256")  # of run.json: what every trial of a run has in common
PER_METHOD = {
    "leakage": "datastore",
    "checkpoints": "checkpoint",
    "codes": "code",
}  # of run.json: what is said of each method, and in a word


def choose_run_directory(out: str | None, name: str, config: Mapping[str, Any]) -> RunDirectory:
    """The folder `out`, by default results/<name>-<time>. Raises InputError when something else lies there."""
    run = RunDirectory(Path(out).expanduser() if out else stamp_path(Path("results"), name))
    if run.is_run():
        _check_config(run, config)
    elif not run.is_new():
        raise InputError(f"out={run.path}: expected a run's folder, an empty one or a new one")
    return run


def open_run(run: RunDirectory, config: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """config.yaml and run.json (`about`), on disk before the first trial. Raises InputError when the run began elsewhere."""
    started = (run.path / "run.json").is_file()
    if started:
        _check_place(run, about)
        _check_methods(run, about)
        run.write_provenance(_add_methods(_drop_incomparable(_record_changes(run.read_provenance(), about), about), about))
    run.repair()
    run.write_config(_merge_configs(run.read_config(), config) if run.is_run() else config)
    if not started:
        run.write_provenance(about)


def _record_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """run.json with a further entry under `continued` where something differs from all that is noted already."""
    seen = [before, *before.get("continued", [])]
    differs = [key for key in RECORDED if now.get(key) not in [one.get(key) for one in seen]]
    entry = {"started": now.get("started"), "differs": differs, **{key: now.get(key) for key in RECORDED}}
    return {**before, "continued": [*before.get("continued", []), entry]} if differs else dict(before)


def stamp_path(folder: Path, name: str) -> Path:
    """folder/<name>-<time>, which does not exist yet."""
    stamp = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    numbered = (folder / (f"{stamp}-{number}" if number > 1 else stamp) for number in count(1))
    return next(path for path in numbered if not path.exists())


def _check_config(run: RunDirectory, new: Mapping[str, Any]) -> None:
    old = run.read_config()
    first, now_first = (next(iter(config.get("engine") or {}), None) for config in (old, new))
    if first != now_first:  # it gives the methods without @engine their name
        raise _build_error(run, "first engine", first, now_first)
    for key in sorted((old.keys() | new.keys()) - {"repeats"}):
        before, now = old.get(key), new.get(key)
        if key in ("method", "engine") and isinstance(before, dict) and isinstance(now, dict):
            shared = before.keys() & now.keys()
            before, now = ({name: value[name] for name in shared} for value in (before, now))
        if before != now:
            raise _build_error(run, *_find_difference(key, before, now))


def _find_difference(key: str, before: Any, now: Any) -> tuple[str, Any, Any]:
    """The first setting inside that differs: its dotted name and both values."""
    if not isinstance(before, dict) or not isinstance(now, dict):
        return key, before, now
    inner = next(name for name in [*before, *now] if before.get(name) != now.get(name))
    return _find_difference(f"{key}.{inner}", before.get(inner), now.get(inner))


def _check_place(run: RunDirectory, now: Mapping[str, Any]) -> None:
    """Trials on two devices, or of two sets of weights, cannot stand in one table."""
    before = run.read_provenance()
    for key in SAME:
        if before.get(key) not in (None, now[key]):
            raise _build_error(run, key, before.get(key), now[key])
    device, device_now = ((about.get("device") or {}).get("name") for about in (before, now))
    if device != device_now:
        raise _build_error(run, "device", device, device_now)


def _check_methods(run: RunDirectory, now: Mapping[str, Any]) -> None:
    """Trials of one method with two datastores, or two sets of weights, cannot stand in one row."""
    about = _drop_incomparable(run.read_provenance(), now)
    for key, what in PER_METHOD.items():
        before, here = about.get(key) or {}, now.get(key) or {}
        for label in before.keys() & here.keys():
            was, is_now = _format_fingerprints(before[label]), _format_fingerprints(here[label])
            if was != is_now:
                raise _build_error(run, f"{what} of {label}", was, is_now)


def _drop_incomparable(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """run.json without fingerprints of code of another kind than today's: those say nothing of a difference."""
    same = before.get("code_kind") == now.get("code_kind")
    return dict(before) if same else {**before, "codes": {}, "code_kind": now.get("code_kind")}


def _format_fingerprints(found: str | list[dict[str, Any]]) -> str:
    """Fingerprints of a method's checkpoints, or of its datastores."""
    return found if isinstance(found, str) else ", ".join(str(store.get("sha256")) for store in found)


def _add_methods(about: dict[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """run.json with what is said of the methods that the run is extended by."""
    return about | {key: (about.get(key) or {}) | (now.get(key) or {}) for key in PER_METHOD if key in now}


def _build_error(run: RunDirectory, what: str, before: Any, now: Any) -> InputError:
    was, now_is = (f"{text[:77]}..." if len(text) > 80 else text for text in (str(before), str(now)))
    return InputError(f"out={run.path} holds another run: its {what} is {was}, here {now_is}; choose another out")


def _merge_configs(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """What config.yaml says after an extension: every method and engine that ever ran here, the most repeats."""
    wider = {key: {**old.get(key, {}), **new[key]} for key in ("method", "engine")}
    return {**new, **wider, "repeats": max(old["repeats"], new["repeats"])}
