"""Create a run directory, or check that an existing one may be resumed.

A run may be extended by methods, further engines and repeats, but never continued with another config.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from specbench.errors import InputError
from specbench.records.names import stamp_path
from specbench.records.run_directory import RunDirectory
from specbench.records.stripped import check_texts

RECORDED = ("versions", "git", "machine", "code_kind", "code_sha256")  # may differ when a run is resumed, and is then recorded
SAME = ("dtype", "suite_sha256", "target_sha256", "draft_sha256")  # of run.json: the same for every trial of a run
PER_METHOD = {"leakage": "datastore", "checkpoints": "checkpoint", "codes": "code"}  # keys of run.json by method, in words
REACHED = ("urls", "patience_s", "start_s", "key", "certificates", "check_certificates")  # how servers are reached
ABSENT = "absent"  # of a setting, in a message


def choose_run_directory(out: str | None, name: str) -> RunDirectory:
    """Return the run directory `out`, by default results/<name>-<time>. Raises InputError if it holds anything but a run."""
    run = RunDirectory(Path(out).expanduser() if out else stamp_path(Path("results"), name))
    if not run.is_run() and not run.is_new():
        raise InputError(f"out={run.path}: expected a run's folder, an empty one or a new one")
    return run


def check_same_run(run: RunDirectory, config: Mapping[str, Any]) -> None:
    """Raise InputError if the directory holds a run of another config. Comes after all checks of the settings themselves."""
    if run.is_run():
        if (run.path / "run.json").is_file():
            check_texts(run.read_provenance(), f"out={run.path}")
        _check_config(run, config)


def open_run(run: RunDirectory, config: Mapping[str, Any], info: Mapping[str, Any]) -> None:
    """Write config.yaml and run.json (`info`). Raises InputError if the run began with another device, model or method."""
    started = (run.path / "run.json").is_file()
    if started:
        before = run.read_provenance()
        comparable = _drop_incomparable({key: value for key, value in before.items() if key != "budget"}, info)
        _check_place(run, before, info)
        _check_methods(run, comparable, info)
        merged = {key: (comparable.get(key) or {}) | (info.get(key) or {}) for key in PER_METHOD if key in info}
        servers = _merge_servers(run, before.get("servers") or {}, info.get("servers") or {})
        run.write_provenance(comparable | _record_changes(before, info) | merged | ({"servers": servers} if servers else {}))
    run.repair()
    run.write_config(_merge_configs(run.read_config(), config) if run.is_run() else config)
    if not started:
        run.write_provenance(info)


def _merge_servers(run: RunDirectory, old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is known of servers, by engine and method. Raises InputError if one is of another build than before."""
    for name in old.keys() & new.keys():
        for label in old[name].keys() & new[name].keys():
            before, now = ({key: value for key, value in one[name][label].items() if key != "url"} for one in (old, new))
            if before != now:
                raise _build_error(run, f"server of {label}@{name}", before, now)
    return {name: {**(old.get(name) or {}), **(new.get(name) or {})} for name in {**old, **new}}


def _record_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Return `continued` of run.json with one more entry, if something differs from all that is recorded; else nothing."""
    entries = before.get("continued") or []
    differs = [key for key in RECORDED if now.get(key) not in [entry.get(key) for entry in (before, *entries)]]
    entry = {"started": now.get("started"), "differs": differs, **{key: now.get(key) for key in RECORDED}}
    return {"continued": [*entries, entry]} if differs else {}


def _check_config(run: RunDirectory, new: Mapping[str, Any]) -> None:
    old, new = (
        {"batch": 1, "concurrency": 1} | dict(config) for config in (run.read_config(), new)
    )  # which older runs do not say
    first, first_now = (next(iter(config.get("engine") or {}), None) for config in (old, new))
    if first != first_now:  # its methods are the ones without @engine
        raise _build_error(run, "first engine", first, first_now)
    for key in sorted((old.keys() | new.keys()) - {"repeats"}):
        before, now = old.get(key), new.get(key)
        now = _drop_new_nulls(before, now)
        if key in ("method", "engine") and isinstance(before, dict) and isinstance(now, dict):
            shared = before.keys() & now.keys()
            before, now = ({name: _drop_reached(key, value[name]) for name in shared} for value in (before, now))
        if before != now:
            raise _build_error(run, *_find_difference(key, before, now))


def _drop_reached(key: str, node: Any) -> Any:
    """Return an engine's settings without those that say how its servers are reached."""
    return {name: value for name, value in node.items() if name not in REACHED} if key == "engine" and node else node


def _drop_new_nulls(before: Any, now: Any) -> Any:
    """Return a setting without what is null now and was not there before: settings that the run's specbench did not have."""
    if not isinstance(before, dict) or not isinstance(now, dict):
        return now
    kept = {key: value for key, value in now.items() if key in before or value is not None}
    return {key: _drop_new_nulls(before.get(key), value) for key, value in kept.items()}


def _find_difference(key: str, before: Any, now: Any) -> tuple[str, Any, Any]:
    """Return the first setting inside that differs: its dotted name and both values."""
    if not isinstance(before, dict) or not isinstance(now, dict):
        return key, before, now
    inner = next(name for name in [*before, *now] if (name in before, before.get(name)) != (name in now, now.get(name)))
    return _find_difference(f"{key}.{inner}", before.get(inner, ABSENT), now.get(inner, ABSENT))


def _check_place(run: RunDirectory, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Trials on two devices, or with two sets of weights, do not belong in one table."""
    for key in SAME:
        if before.get(key) not in (None, now[key]):
            raise _build_error(run, key, before.get(key), now[key])
    device, device_now = ((info.get("device") or {}).get("name") for info in (before, now))
    if device != device_now:
        raise _build_error(run, "device", device, device_now)


def _check_methods(run: RunDirectory, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Trials of one method with two datastores, or two sets of weights, do not belong in one row."""
    for key, what in PER_METHOD.items():
        old, new = before.get(key) or {}, now.get(key) or {}
        for label in old.keys() & new.keys():
            if (was := _format_fingerprints(old[label])) != (is_now := _format_fingerprints(new[label])):
                raise _build_error(run, f"{what} of {label}", was, is_now)


def _drop_incomparable(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Return run.json without fingerprints of code of another kind, which cannot be compared."""
    same = before.get("code_kind") == now.get("code_kind")
    return dict(before) if same else {**before, "codes": {}, "code_kind": now.get("code_kind")}


def _format_fingerprints(value: str | list[dict[str, Any]]) -> str:
    """Format the fingerprints of a method's checkpoints or code, or those of its datastores."""
    return value if isinstance(value, str) else ", ".join(str(store.get("sha256")) for store in value)


def _build_error(run: RunDirectory, what: str, before: Any, now: Any) -> InputError:
    was, now_is = (f"{text[:77]}..." if len(text) > 80 else text for text in (str(before), str(now)))
    return InputError(f"out={run.path} holds another run: its {what} is {was}, here {now_is}; choose another out")


def _merge_configs(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of an extended run: every method and engine that ever ran in it, and the most repeats."""
    wider = {key: {**(old.get(key) or {}), **new[key]} for key in ("method", "engine")}
    return {**new, **wider, "repeats": max(old.get("repeats") or 0, new["repeats"])}
