"""Which parts of Hydra's own config may differ from the default: what launches a sweep's jobs, and where they are written.

Hydra calls the `_target_` of its launcher, its sweeper and its callbacks, and whatever a logging config names.
"""

from collections.abc import Mapping
from typing import Any

from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper

from specbench.errors import InputError, suggest_nearest
from specbench.setup.instantiate import TARGET, check_kind
from specbench.setup.location import locate

KINDS = {"launcher": Launcher, "sweeper": Sweeper}
OWN = ("overrides", "runtime", "searchpath", "defaults", "mode", "sweep", "run", "output_subdir", "verbose")  # harmless, or ours
OF_JOBS = ("env_set", "env_copy", "chdir")


def check_hydra(node: Mapping[str, Any], default: Mapping[str, Any], chosen: Mapping[str, Any]) -> None:
    """Raise InputError for settings of Hydra that could run code or change a job's surroundings.

    node: Hydra's config as plain values. default: the same without overrides. chosen: the same with only the command line's
    overrides of Hydra. Only these may choose a launcher, an experiment may not: a launcher's settings may be commands, such as
    submitit's `setup`.
    """
    for key, value in node.items():
        if key not in default:
            raise InputError(f"hydra.{key}: no such setting{suggest_nearest(str(key), list(default))}")
        if key in KINDS:
            _check_equal({key: value}, chosen, "hydra.")
        elif key == "job":
            _check_equal({name: value.get(name) for name in OF_JOBS}, default["job"], "hydra.job.")
        elif key not in OWN:
            _check_equal({key: value}, default, "hydra.")


def check_plugin(node: Any, name: str) -> None:
    """Raise InputError for a node that is not a launcher or sweeper. name: of KINDS; node: its config, interpolated."""
    place, kind = f"hydra.{name}", KINDS[name]
    if not isinstance(node, Mapping) or TARGET not in node:
        raise InputError(f"{place}: expected a mapping with _target_; choose one by {place.replace('.', '/')}=NAME")
    check_kind(locate(node[TARGET], place, [kind]), node[TARGET], place, kind)
    if inner := next((name for name, value in node.items() if _holds_node(value)), None):
        raise InputError(f"{place}.{inner}: _target_ is not allowed here; expected plain values")


def _holds_node(value: Any) -> bool:
    if isinstance(value, Mapping):
        return TARGET in value or any(map(_holds_node, value.values()))
    return isinstance(value, list) and any(map(_holds_node, value))


def _check_equal(given: Mapping[str, Any], default: Mapping[str, Any], prefix: str) -> None:
    for key, value in given.items():
        if value != default.get(key):
            remedy = "of Hydra's settings, only hydra/launcher=NAME and hydra.launcher.KEY=VALUE are allowed"
            raise InputError(f"{prefix}{key}: cannot be changed; {remedy}")
