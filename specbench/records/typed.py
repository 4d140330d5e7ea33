"""Values from JSON or YAML, checked against annotations: a dataclass or a TypedDict says what a file holds.

Numbers are finite, and within (0, LARGEST) unless stated otherwise; true is not a number. What is annotated as Any is plain:
texts, numbers, lists and mappings by text, of a bounded depth and size.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

from specbench.bounds import LARGEST, Within, is_sound
from specbench.errors import InputError

DEEPEST = 100  # mappings and lists inside one another
MOST = 2_000_000  # values in one document
SHOWN = 60  # characters of a value in a message
WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", None: "null", type(None): "null"}

Test = Callable[[Any], bool]


@dataclass(frozen=True)
class Form:
    """A text's form. words: in a message."""

    pattern: str
    words: str

    def __str__(self) -> str:
        return self.words


ANY_SIZE = Within(0, LARGEST)
SHOWABLE = r"[^\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]"  # no control or direction characters
Name = Annotated[str, Form(f"{SHOWABLE}*", "without control characters")]
Label = Annotated[str, Form(rf"(?=.*\S){SHOWABLE}{{1,200}}", "not blank, without control characters, of at most 200 characters")]
Sha256 = Annotated[str, Form(r"[0-9a-f]{64}", "a sha256: 64 hexadecimal digits")]


def check(value: Any, hint: Any, name: str) -> None:
    """Raise InputError, naming the innermost part that is wrong, unless the value is what the hint says."""
    if not build_test(hint)(value):
        name, value, hint = _locate(value, hint, name)
        said = f"{name} is {_show(value)}" if value is not MISSING else f"{name} is missing"
        raise InputError(f"{said}, expected {describe(hint)}")


def check_fields(kind: type, row: Mapping[str, Any], limits: Mapping[str, Any]) -> None:
    """Raise InputError for the first field of a dataclass that is not as annotated. limits: more exact hints by name."""
    hints = list_hints(kind)
    for name, value in row.items():
        hint = limits.get(name, hints[name])
        if not build_test(hint)(value):
            check(value, hint, name)


@cache
def build_test(hint: Any, limits: Any = None) -> Test:
    """Return whether a value is what a hint says. limits: a Within or a Form around it."""
    origin, inside = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return build_test(*inside[:2])
    if origin in (Union, types.UnionType):
        tests = [build_test(one, limits) for one in inside]
        return lambda value: any(test(value) for test in tests)
    if origin is Literal:
        return lambda value: type(value) is str and value in inside
    if origin is list:
        return _build_list_test(inside[0], limits)
    if origin is dict:
        inner = build_test(inside[1], limits)
        return lambda value: type(value) is dict and all(type(key) is str and inner(one) for key, one in value.items())
    return _build_mapping_test(hint) if is_typeddict(hint) else _build_scalar_test(hint, limits)


def _build_scalar_test(hint: Any, limits: Any) -> Test:
    if hint is str:
        matches = re.compile(limits.pattern).fullmatch if isinstance(limits, Form) else bool
        return lambda value: type(value) is str and (matches is bool or matches(value) is not None)
    if hint in (int, float):
        bounds = limits if isinstance(limits, Within) else ANY_SIZE
        return lambda value: bounds.holds(value) and (hint is float or type(value) is int)
    if hint is Any:
        return lambda value: not find_odd(value)
    kind = type(None) if hint is None else hint
    return lambda value: type(value) is kind


def _build_list_test(hint: Any, limits: Any) -> Test:
    inner = build_test(hint, limits)
    if hint is not int:
        return lambda value: type(value) is list and all(map(inner, value))
    return lambda value: (
        type(value) is list
        and (  # many and long: checking the two ends checks all
            not value or (set(map(type, value)) == {int} and inner(min(value)) and inner(max(value)))
        )
    )


def _build_mapping_test(kind: Any) -> Test:
    tests = {name: build_test(hint) for name, hint in list_hints(kind).items()}
    required = kind.__required_keys__
    return lambda value: (
        type(value) is dict
        and all(name in value for name in required)
        and all(test(value[name]) for name, test in tests.items() if name in value)
    )


@cache
def list_hints(kind: Any) -> Mapping[str, Any]:
    """Return the hints of a dataclass or TypedDict by name."""
    return get_type_hints(kind, include_extras=True)


MISSING = object()


def _locate(value: Any, hint: Any, name: str) -> tuple[str, Any, Any]:
    """Return name, value and hint of the innermost part that is wrong."""
    for inner_name, inner, inner_hint in _iter_parts(value, hint, name):
        if inner is MISSING or not build_test(inner_hint)(inner):
            return _locate(inner, inner_hint, inner_name)
    return name, value, hint


def _iter_parts(value: Any, hint: Any, name: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield what is inside a mapping or list, if the hint requires one."""
    for one in get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,):
        if is_typeddict(one) and type(value) is dict:
            hints = list_hints(one)
            absent = dict.fromkeys(sorted(one.__required_keys__), MISSING)
            yield from (
                (f"{name}.{key}".lstrip("."), inner, hints[key]) for key, inner in (absent | value).items() if key in hints
            )
        elif get_origin(one) is dict and type(value) is dict:
            yield from ((f"{name}.{key}".lstrip("."), inner, get_args(one)[1]) for key, inner in value.items())
        elif get_origin(one) is list and type(value) is list:
            yield from ((f"{name}[{place}]", inner, get_args(one)[0]) for place, inner in enumerate(value))


def describe(hint: Any, limits: Any = None) -> str:
    """Return a hint in words: `a whole number from 0, or null`."""
    origin, inside = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return describe(*inside[:2])
    if origin in (Union, types.UnionType):
        return ", or ".join(describe(one, limits) for one in inside)
    if origin is Literal:
        return " or ".join(inside)
    if origin is list:
        return f"a list of {describe(inside[0], limits)}"
    if hint in (int, float):
        return f"{WORDS[hint]} {_describe_bounds(limits or ANY_SIZE)}"
    words = WORDS.get(hint, "plain values" if hint is Any else "a mapping")
    return f"{words}, {limits}" if limits else words


def _describe_bounds(bounds: Within) -> str:
    return f"from {bounds.low:g} to {bounds.high:g}" if bounds.high < LARGEST else f"from {bounds.low:g}"


def _show(value: Any) -> str:
    """Return a value for a message of one line."""
    if isinstance(value, (dict, list)):
        return f"a mapping of {len(value)}" if isinstance(value, dict) else f"a list of {len(value)}"
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else ascii(value)[: SHOWN + 1]
    return text if len(text) <= SHOWN else text[:SHOWN] + "…"


def find_odd(value: Any) -> str:
    """Return why a value is not plain, or an empty text: depth, size, types, keys that are not text, text that is not UTF-8."""
    left = [(value, 0)]
    seen = 0
    while left:
        one, depth = left.pop()
        seen += 1
        if depth > DEEPEST or seen > MOST:
            return "nested too deeply" if depth > DEEPEST else "too large"
        if isinstance(one, dict):
            if any(type(key) is not str for key in one):
                return "a key that is not text"
            left += [(part, depth + 1) for item in one.items() for part in item]
        elif isinstance(one, list):
            left += [(part, depth + 1) for part in one]
        elif wrong := _find_odd_scalar(one):
            return wrong
    return ""


def _find_odd_scalar(value: Any) -> str:
    if isinstance(value, str):
        return "" if value.isascii() or not has_surrogate(value) else "a text that is not UTF-8: it holds a lone surrogate"
    if value is None or isinstance(value, bool):
        return ""
    if not isinstance(value, (int, float)):
        return f"a {type(value).__name__}"
    return "" if is_sound(value) else "a number out of range"


def has_surrogate(text: str) -> bool:
    """Return whether a text cannot be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
