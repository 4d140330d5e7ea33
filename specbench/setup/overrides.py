"""The KEY=VALUE words of a command line, checked where Hydra would accept them, or would not name what is wrong."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from specbench.errors import InputError, show_value, suggest_choices, suggest_nearest
from specbench.records.nested import look_up
from specbench.records.trial import BASELINE
from specbench.setup.settings import EXTRA, TargetSettings

LISTS = {"method": "_target_", "task": "name", "engine": "_target_"}  # groups of several choices: the key that each choice needs
TARGET_KEYS = (*(field.name for field in fields(TargetSettings)), *EXTRA)


def parse_overrides(overrides: Sequence[str]) -> list[Override]:
    """Parse KEY=VALUE words, one by one so that a number of thousands of digits can be named. Raises InputError."""
    parser = OverridesParser.create()
    parsed = []
    for override in overrides:
        try:
            parsed += parser.parse_overrides([override])
        except ValueError as error:
            raise InputError(f"{show_value(override)}: not an override ({error})") from None
    return parsed


def check_choices(parsed: Sequence[Override], options: Mapping[str, Sequence[str]]) -> None:
    """Raise InputError for a deletion and for an unknown choice of a group, also null. options: the choices by group."""
    for override in parsed:
        group = override.key_or_group
        if group == "hydra.searchpath":
            raise InputError(f"{group}: cannot be changed; use --config-dir to add a folder of YAMLs")
        if override.is_delete():
            _check_deletion(group)
        elif group in options and not override.is_sweep_override():
            for name in _list_values(override):
                if not (_is_task(name) if group == "task" else name in options[group]):
                    raise unknown_choice(group, show_value(name), options[group])


def _is_task(name: Any) -> bool:
    """Return whether it may be the name of a suite's own task: Hydra takes a choice's name for a path."""
    return isinstance(name, str) and "/" not in name


def unknown_choice(group: str, given: str, options: Sequence[str], more: str = "") -> InputError:
    return InputError(f"{group}={given}: no such {group}; expected {suggest_choices(given, options) or 'none'}{more}")


def _check_deletion(key: str) -> None:
    if "." not in key:
        raise InputError(f"~{key}: a setting can be changed, but not deleted")
    if key == f"method.{BASELINE}":
        raise InputError(f"~{key}: every method is compared with {BASELINE}, so it cannot be left out")


def _list_values(override: Override) -> list[Any]:
    value = override.value()
    return value if isinstance(value, list) and override.key_or_group in LISTS else [value]


def list_new_target_keys(parsed: Sequence[Override]) -> Iterator[str]:
    """Yield the keys that + or ++ adds to the target and that no code reads. Its YAML may have them, for its methods' YAMLs."""
    for override in parsed:
        section, _, rest = override.key_or_group.partition(".")
        key, added = rest.partition(".")[0], override.is_add() or override.is_force_add()
        if section == "target" and added and key and key not in TARGET_KEYS:
            yield key


def check_target_keys(new: Sequence[str], plain: Mapping[str, Any]) -> None:
    """Raise InputError for a new key that the target's YAML does not have either. plain: the config without any addition."""
    for key in new:
        if look_up(plain, f"target.{key}") is None:
            raise InputError(f"target.{key}: no such setting{suggest_nearest(key, TARGET_KEYS)}")


def register_tasks(parsed: Sequence[Override], known: Sequence[str]) -> None:
    """Make every name of `task=[...]` a choice of that group: a suite may have its own tasks, without a YAML."""
    for name in _iter_tasks(parsed):
        if name not in known:
            ConfigStore.instance().store(group="task", name=name, node={name: {"name": name}}, package="task")


def _iter_tasks(parsed: Sequence[Override]) -> Iterator[str]:
    for override in parsed:
        if override.key_or_group == "task" and not override.is_delete():
            swept = list(override.sweep_iterator()) if override.is_discrete_sweep() else [override.value()]
            for value in swept:
                yield from (name for name in (value if isinstance(value, list) else [value]) if isinstance(name, str))
