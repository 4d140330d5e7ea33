"""Classes that configs name by `_target_`, where they were and where they are: stored configs and others' YAMLs keep working."""

from collections.abc import Mapping
from typing import Any

MOVED = {
    "methods.autoregressive.Autoregressive": "specbench.decoding.autoregressive.Autoregressive",
    "specbench.models.load_draft": "specbench.models.load.load_draft",
}


def translate_targets(config: Any) -> Any:
    """The same plain config with every `_target_` as it is called today."""
    if isinstance(config, Mapping):
        return {key: _current_name(value) if key == "_target_" else translate_targets(value) for key, value in config.items()}
    return [translate_targets(value) for value in config] if isinstance(config, list) else config


def _current_name(target: Any) -> Any:
    return MOVED.get(target, target) if isinstance(target, str) else target
