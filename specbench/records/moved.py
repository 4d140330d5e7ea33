"""Old and new paths of classes that configs name in `_target_`, so that stored configs and users' YAMLs keep working."""

from collections.abc import Mapping
from typing import Any

MOVED = {
    "methods.autoregressive.Autoregressive": "specbench.decoding.autoregressive.Autoregressive",
    "specbench.models.load_draft": "specbench.models.load.load_draft",
}


def translate_targets(config: Any) -> Any:
    """Return the plain config with the current path in every `_target_`."""
    if isinstance(config, Mapping):
        return {key: _current_name(value) if key == "_target_" else translate_targets(value) for key, value in config.items()}
    return [translate_targets(value) for value in config] if isinstance(config, list) else config


def _current_name(target: Any) -> Any:
    return MOVED.get(target, target) if isinstance(target, str) else target
