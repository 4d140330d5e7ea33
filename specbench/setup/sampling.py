"""The settings of sampling of one answer: those of a config, changed by name."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from specbench.errors import InputError, suggest_nearest
from specbench.setup.instantiate import check_types
from specbench.setup.rules import SAMPLING, SEED, check_rules
from specbench.setup.settings import SamplingSettings


def change_sampling(settings: SamplingSettings, changes: Mapping[str, Any]) -> SamplingSettings:
    """Return the settings with other values. Raises InputError for an unknown name and for a value that is not allowed."""
    plain = asdict(settings)
    for name in changes:
        if name not in plain:
            raise InputError(f"{name}: no such setting of sampling{suggest_nearest(name, list(plain))}")
    plain |= changes
    check_rules({"sampling": plain}, SAMPLING)
    check_types(SamplingSettings, plain, "sampling")
    changed = SamplingSettings(**plain)
    changed.check_lengths()
    return changed


def check_seed(seed: int) -> None:
    """Raise InputError for what is no seed."""
    check_rules({"seed": seed}, {"seed": SEED})
