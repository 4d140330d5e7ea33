"""A config node with a `_target_` becomes its object; its mistakes are found beforehand, from the constructor's signature."""

import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
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
    """Instantiate a checked node. What the constructor says of bad input comes out as itself, anything else as one line."""
    try:
        return hydra.utils.instantiate(translate_targets(node), _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        raise InputError(f"{node.get('_target_')}: {format_error(error.__cause__ or error)}") from None


def locate_class(node: Mapping[str, Any]) -> Any:
    """What a checked node would instantiate."""
    return hydra.utils.get_object(translate_targets(node)["_target_"])


def check_node(node: Mapping[Any, Any], place: str) -> None:
    """Raises InputError for a class that is not there, a key it does not take, one it lacks, a value of another type."""
    plain = translate_targets(node)
    target = plain.get("_target_")
    if target is None:
        raise InputError(f"{place}: expected a _target_, the class to build; given: {', '.join(map(str, plain)) or 'nothing'}")
    made = _import_target(target, place)
    parameters = inspect.signature(made).parameters
    given = {key: value for key, value in plain.items() if not key.startswith("_")}
    for key in given:
        if key not in parameters and not any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
            near = find_closest(key, list(parameters)) if parameters else "none"
            raise InputError(f"{place}.{key}: {target} takes no {key}; the nearest is {near}")
    for key, one in parameters.items():
        if one.default is one.empty and one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY) and key not in given:
            raise InputError(f"{place}: {target} needs {key}; given: {', '.join(given) or 'nothing'}")
    check_types(made, given, place)


def check_types(made: Any, given: Mapping[Any, Any], place: str) -> None:
    """Raises InputError for a value that the annotation of a parameter of `made` rules out; nested nodes are checked as well."""
    hints = _get_hints(made)
    for key, value in given.items():
        if isinstance(value, dict) and "_target_" in value:
            check_node(value, f"{place}.{key}")
        elif not _fits(value, hints.get(key, Any)):
            shown = "null" if value is None else value
            raise InputError(f"{f'{place}.' * bool(place)}{key}={shown}: expected {_describe_expected(value, hints[key])}")


def _import_target(target: Any, place: str) -> Any:
    try:
        with _silence("hydra.utils"):
            return hydra.utils.get_object(target)
    except Exception as error:
        module, _, name = str(target).rpartition(".")
        raise InputError(f"{place}: _target_ {target}: {_explain_import(module, name) or format_error(error)}") from None


@contextmanager
def _silence(logger: str) -> Iterator[None]:
    """Hydra logs what it also raises; a user's mistake gets one line."""
    talking = logging.getLogger(logger)
    before, talking.disabled = talking.disabled, True
    try:
        yield
    finally:
        talking.disabled = before


def _explain_import(module: str, name: str) -> str | None:
    """Why module.name cannot be had: no such module, one that fails on import, or another name in it."""
    try:
        there = [key for key in vars(import_module(module)) if not key.startswith("_")]
    except ModuleNotFoundError as error:
        return f"no module {error.name or module}"
    except Exception as error:
        return format_error(error)
    return f"{module} has no {name}; the nearest is {find_closest(name, there)}" if there else None


def _get_hints(made: Any) -> dict[str, Any]:
    try:
        return get_type_hints(made.__init__ if inspect.isclass(made) else made)
    except Exception:  # names that only a type checker sees
        return {}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a plain value may be handed to a parameter annotated so; in doubt it may."""
    kind = get_origin(hint) or hint
    if kind is Literal:
        return value in get_args(hint)
    if kind in (Union, UnionType):
        return any(_fits(value, one) for one in get_args(hint))
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    if kind in (bool, str, NoneType):
        return isinstance(value, kind)
    return not (kind in CONTAINERS and isinstance(value, SCALARS))


def _describe_expected(value: Any, hint: Any) -> str:
    if get_origin(hint) is Literal:
        return suggest_choices(str(value), [str(one) for one in get_args(hint)])
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_describe_expected(value, one) for one in get_args(hint))
    kind: Any = get_origin(hint) or hint
    return WORDS.get(kind, getattr(kind, "__name__", str(kind)))
