"""How a run's prompts were made and its answers ended, in words, to distinguish the runs of a sweep over these settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

NATURAL = "at a stop token"  # or at the greatest length
DEFAULT = "default"
LONGEST = 60  # characters


def describe_ends(sampling: Mapping[str, Any]) -> str:
    """Return where the answers under a config end, such as `at a fixed length`."""
    least, stops = sampling.get("min_new_tokens"), sampling.get("stop")
    parts = ["at a fixed length" if sampling.get("ignore_eos") and not stops else "not at a stop token"] * bool(
        sampling.get("ignore_eos")
    )
    parts += [f"after {least} tokens at the earliest"] * bool(least)
    parts += [f"at {' or '.join(map(_show, stops or ()))}"] * bool(stops)
    return _shorten(", ".join(parts)) or NATURAL


def describe_template(target: Mapping[str, Any]) -> str:
    """Return the arguments of the chat template and the system's message, such as `enable_thinking=false`."""
    given = {**(target.get("template") or {}), **({"system": target["system"]} if target.get("system") else {})}
    return _shorten(", ".join(f"{name}={_show(value)}" for name, value in given.items())) or DEFAULT


def _show(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _shorten(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
