"""Check a YAML node against the signature of the class in its `_target_`, and instantiate it. Imports no torch."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pkgutil import resolve_name
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import hydra.utils
from hydra.errors import InstantiationException

from specbench.errors import InputError, find_closest, format_error, suggest_choices
from specbench.records.moved import translate_targets

SCALARS = (bool, int, float, str, NoneType)
CONTAINERS = (list, tuple, dict, Sequence, Mapping)
WORDS: dict[Any, str] = {
    **{int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null"},
    **dict.fromkeys((list, tuple, Sequence), "a list"),
    **dict.fromkeys((dict, Mapping), "a mapping"),
}


def instantiate(node: Mapping[str, Any]) -> Any:
    """Return the object of a checked node. Raises InputError: the constructor's own, or any other exception in one line."""
    try:
        return hydra.utils.instantiate(translate_targets(node), _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        raise InputError(f"{node.get('_target_')}: {format_error(error.__cause__ or error)}") from None


def locate_class(node: Mapping[str, Any]) -> Any:
    """Return the class, or the function, that a checked node would call."""
    return resolve_name(translate_targets(node)["_target_"])


def check_node(node: Mapping[Any, Any], place: str) -> None:
    """Raise InputError for a class that does not exist, a key it does not take or needs, and a value of the wrong type."""
    plain = translate_targets(node)
    target = plain.get("_target_")
    if target is None:
        raise InputError(f"{place}: expected a _target_, the class to build; given: {', '.join(map(str, plain)) or 'nothing'}")
    called = _import_target(target, place)
    parameters = inspect.signature(called).parameters
    given = {key: value for key, value in plain.items() if not key.startswith("_")}
    for key in given:
        if key not in parameters and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            nearest = find_closest(key, list(parameters)) if parameters else "none"
            raise InputError(f"{place}.{key}: {target} takes no {key}; the nearest is {nearest}")
    for key, parameter in parameters.items():
        by_name = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if by_name and parameter.default is parameter.empty and key not in given:
            raise InputError(f"{place}: {target} needs {key}; given: {', '.join(given) or 'nothing'}")
    check_types(called, given, place)


def check_types(called: Callable[..., Any], given: Mapping[Any, Any], place: str) -> None:
    """Raise InputError for a value that its parameter's annotation rules out. Nested nodes are checked too."""
    hints = _get_hints(called)
    for key, value in given.items():
        if isinstance(value, dict) and "_target_" in value:
            check_node(value, f"{place}.{key}")
        elif not _fits(value, hints.get(key, Any)):
            shown = "null" if value is None else value
            raise InputError(f"{f'{place}.' * bool(place)}{key}={shown}: expected {_describe_expected(value, hints[key])}")


def _import_target(target: Any, place: str) -> Any:
    try:
        return resolve_name(target)
    except Exception as error:
        module, _, name = str(target).rpartition(".")
        raise InputError(f"{place}: _target_ {target}: {_explain_import(module, name) or format_error(error)}") from None


def _explain_import(module: str, name: str) -> str | None:
    """Say why module.name cannot be imported: no such module, one that fails on import, or no such name in it."""
    try:
        names = [key for key in vars(import_module(module)) if not key.startswith("_")]
    except ModuleNotFoundError as error:
        return f"no module {error.name or module}"
    except Exception as error:
        return format_error(error)
    return f"{module} has no {name}; the nearest is {find_closest(name, names)}" if names else None


def _get_hints(called: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(called.__init__ if inspect.isclass(called) else called)
    except Exception:  # names that only a type checker imports
        return {}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a parameter with this annotation may take a plain value; true in doubt."""
    kind = get_origin(hint) or hint
    if kind is Literal:
        return value in get_args(hint)
    if kind in (Union, UnionType):
        return any(_fits(value, choice) for choice in get_args(hint))
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    if kind in (bool, str, NoneType):
        return isinstance(value, kind)
    return not (kind in CONTAINERS and isinstance(value, SCALARS))


def _describe_expected(value: Any, hint: Any) -> str:
    kind: Any = get_origin(hint) or hint
    if kind is Literal:
        return suggest_choices(str(value), [str(choice) for choice in get_args(hint)])
    if kind in (Union, UnionType):
        return " or ".join(_describe_expected(value, choice) for choice in get_args(hint))
    return WORDS.get(kind, getattr(kind, "__name__", str(kind)))
