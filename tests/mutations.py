"""Hypothesis: valid JSON with one part replaced, dropped or added, as a stranger's file might be."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, -5, 0.5, 1.0, -0.5, 1e-300, 1e308, 2**31, 2**53, 2**70, 10**400),
    *(float("nan"), float("inf"), float("-inf")),
    *(
        "",
        "overall",
        "autoregressive",
        "..",
        "../../victim/trials",
        "/etc/passwd",
        "a[/x]b",
        "[bold]",
        "\ud800",
        "\x00",
        "\x1b[2J",
    ),
    *("a" * 5000, "−×–", "%s{}", "2026-13-45", [], {}, [[]], [None], [-1], [1.5], [True], {"": None}, {"name": 5}),
)
values = st.recursive(
    st.sampled_from(ODD) | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def mutated(draw: Callable[[Any], Any], document: Any) -> Any:
    """Return the document with one part replaced, dropped, doubled or added."""
    whole = [copy.deepcopy(document)]
    parent: Any = whole
    key: Any = 0
    while isinstance(parent[key], (dict, list)) and parent[key] and draw(st.integers(0, 4)):
        parent = parent[key]
        key = draw(st.sampled_from(list(parent) if isinstance(parent, dict) else range(len(parent))))
    how = draw(st.sampled_from(("replace", "replace", "replace", "drop", "add")))
    if how == "replace" or parent is whole:
        parent[key] = draw(values)
    elif how == "drop":
        del parent[key]
    elif isinstance(parent, dict):
        parent[draw(st.text(max_size=5))] = draw(values)
    else:
        parent.insert(key, draw(values))
    return whole[0]


def dump(document: Any) -> str:
    """JSON, with what it does not allow: NaN, lone surrogates as escapes."""
    return json.dumps(document)
