"""What the values of settings may be; a broken rule is an InputError of one line."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from specbench.errors import InputError, nearest
from specbench.machine.devices import pick_device, pick_dtype
from specbench.models.load import load_model
from specbench.setup.instantiate import check, check_types

CONTEXTS = ("reference", "own")

Rule = tuple[Callable[[Any], bool], str]  # whether a setting's value will do, and what would

Rules = dict[str, Rule]  # by the setting's dotted name

LOADING = ("path", "revision", "weights", "config", "dtype", "device", "device_map", "trust_remote_code")


def check_values(config: DictConfig, here: bool = True) -> None:
    """Raises InputError for a setting of another type or range, and for a YAML that does not fit its class.

    here: this machine is to run it, so that its device must be there.
    """
    check_rules(config, RULES)
    if config.context not in CONTEXTS:
        raise InputError(f"context={config.context}: expected {nearest(config.context, CONTEXTS)}")
    check_types(load_model, {key: config.target[key] for key in LOADING}, "target")
    if here:
        pick_dtype(config.target.dtype, pick_device(config.target.device))
    check(config.suite, "suite")
    for group in ("method", "engine"):
        for label, settings in config[group].items():
            check(settings, f"{group}.{label}")


def check_rules(config: DictConfig, rules: Rules) -> None:
    """Raises InputError for the first setting whose rule does not hold."""
    for name, (holds, expected) in rules.items():
        value = OmegaConf.select(config, name)
        if not holds(value):
            given = "null" if value is None else value
            raise InputError(f"{name}={given}: expected {expected}")


def _whole(value: Any) -> bool:
    return type(value) is int and value >= 1


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


WHOLE: Rule = (_whole, "a whole number, at least 1")

SHARED_RULES: Rules = {
    "limit": (lambda value: value is None or _whole(value), "a number of questions per task, at least 1, or null for all"),
    "seed": (lambda value: type(value) is int, "a whole number"),
    "out": (lambda value: value is None or (isinstance(value, str) and value != ""), "a folder, or null"),
    "target.name": (lambda value: isinstance(value, str), "a name"),
    "target.format": (lambda value: isinstance(value, str), "a chat format"),
    "target.shape": (lambda value: value is None or isinstance(value, str), "the name of a shape, or null"),
    "target.draft": (lambda value: value is None or isinstance(value, DictConfig), "a mapping with path, or null"),
}

RULES: Rules = SHARED_RULES | {
    "repeats": WHOLE,
    "threads": (lambda value: value is None or _whole(value), "a whole number, at least 1, or null for torch's choice"),
    "profile": (lambda value: type(value) is bool, "true or false"),
    "check_baseline": (lambda value: type(value) is bool, "true or false"),
    "sampling.max_new_tokens": WHOLE,
    "sampling.temperature": (
        lambda value: _number(value) and (value == 0 or 0.001 <= value <= 1000),
        "0 (greedy), or a number from 0.001 to 1000",
    ),
    "sampling.top_p": (lambda value: _number(value) and 0 < value <= 1, "a number above 0, at most 1 (all tokens)"),
    "sampling.top_k": (lambda value: type(value) is int and value >= 0, "a whole number, at least 0 (all tokens)"),
}


def plain_config(config: DictConfig) -> dict[str, Any]:
    """What config.yaml holds: everything but the run directory's own place; the home folder is written ~."""
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): _without_home(value) for key, value in plain.items() if key != "out"}


def _without_home(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_home(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_home(inner) for inner in value]
    home = f"{Path.home()}/"
    return f"~/{value.removeprefix(home)}" if isinstance(value, str) and value.startswith(home) else value
