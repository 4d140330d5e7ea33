"""Settings and facts inside nested mappings, by dotted names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def look_up(plain: Any, name: str) -> Any:
    """Return the value of a dotted name; None if it has none."""
    for key in name.split("."):
        plain = plain.get(key) if isinstance(plain, Mapping) else None
    return plain


def flatten(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and the value of every setting inside; an empty mapping is a value."""
    for key, value in nested.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
