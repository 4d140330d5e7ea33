"""Check a YAML node against its place and the signature of the class in its `_target_`, and build it. Imports no torch.

A node builds what its place requires: a suite, a drafter or an engine. A nested node builds what its parameter's annotation says.
Nothing else is called. Hydra's own `instantiate` is not used: it calls whatever a node names, however deep, and also what an
escaped interpolation turns into while it runs.
"""

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pkgutil import resolve_name
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints, is_typeddict

from specbench.bounds import Within, is_sound
from specbench.errors import InputError, format_error, show_value, suggest_choices, suggest_nearest
from specbench.records.moved import translate_targets
from specbench.setup.location import locate

T = TypeVar("T")
TARGET = "_target_"
LISTS = (list, tuple, Sequence)
MAPPINGS = (dict, Mapping)
WORDS: dict[Any, str] = {
    **{int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null", Any: "a plain value"},
    **dict.fromkeys(LISTS, "a list"),
    **dict.fromkeys(MAPPINGS, "a mapping"),
}


def instantiate(node: Mapping[str, Any], kind: type[T], place: str) -> T:
    """Return the object of a node, checked before anything is called.

    Raises InputError: the constructor's own, or any other exception in one line.
    """
    check_node(node, place, kind)
    plain = translate_targets(node)
    try:
        built: T = _build(plain)
        return built
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(f"{plain[TARGET]}: {format_error(error)}") from None


def _build(value: Any) -> Any:
    if isinstance(value, Mapping):
        parts = {key: _build(inner) for key, inner in value.items() if key != TARGET}
        return resolve_name(value[TARGET])(**parts) if TARGET in value else parts
    return [_build(inner) for inner in value] if isinstance(value, list) else value


def iter_nodes(value: Any) -> Iterator[Mapping[str, Any]]:
    """Yield a node and all nested nodes, outer ones first."""
    if isinstance(value, Mapping) and TARGET in value:
        yield value
    for inner in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        yield from iter_nodes(inner)


def locate_class(node: Mapping[str, Any]) -> Any:
    """Return the class, or the function, that a checked node would call."""
    return resolve_name(translate_targets(node)[TARGET])


def check_node(node: Mapping[Any, Any], place: str, *kinds: type) -> None:
    """Raise InputError for a class that does not exist or is not one of the kinds, and for arguments that it does not take."""
    plain = translate_targets(node)
    if plain.get(TARGET) is None:
        raise InputError(f"{place}: expected a _target_, the class to build; given: {', '.join(map(str, plain)) or 'nothing'}")
    target = plain[TARGET]
    called = locate(target, place, kinds)
    check_kind(called, target, place, *kinds)
    given = {key: value for key, value in plain.items() if key != TARGET}
    _check_arguments(called, target, given, place)
    check_types(called, given, place)


def check_kind(called: Any, target: Any, place: str, *kinds: type) -> None:
    """Raise InputError unless calling it gives one of the kinds: a subclass, or a function annotated to return one."""
    built = called if isinstance(called, type) else _get_hints(called).get("return")
    fits = isinstance(built, type) and issubclass(built, kinds)
    if not fits or (called in kinds and inspect.isabstract(called)):
        expected = " or ".join(f"{kind.__module__}.{kind.__name__}" for kind in kinds)
        raise InputError(f"{place}: _target_ {target}: expected a subclass of {expected}, or a function annotated to return one")


def _check_arguments(called: Callable[..., Any], target: str, given: Mapping[Any, Any], place: str) -> None:
    """Raise InputError for an argument that a class does not take, and for one that is missing."""
    parameters = _list_parameters(called)
    by_name = [key for key, parameter in parameters.items() if parameter.kind is not parameter.VAR_KEYWORD]
    for key in map(str, given):
        if key not in by_name and len(by_name) == len(parameters):
            raise InputError(f"{place}.{key}: {target} takes no {show_value(key)}{suggest_nearest(key, by_name)}")
    for key in by_name:
        if parameters[key].default is inspect.Parameter.empty and key not in given:
            raise InputError(f"{place}: {target} needs {key}; given: {', '.join(given) or 'nothing'}")


def _list_parameters(called: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the parameters that may be given by name; of a class without a signature, none."""
    try:
        parameters = inspect.signature(called).parameters
    except (TypeError, ValueError):
        return {}
    left_out = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL)
    return {key: parameter for key, parameter in parameters.items() if parameter.kind not in left_out}


def check_types(called: Callable[..., Any], given: Mapping[Any, Any], place: str) -> None:
    """Raise InputError for a value that its parameter's annotation rules out. Nested nodes are checked too."""
    hints = _get_hints(called)
    for key, value in given.items():
        check_value(value, hints.get(key, Any), f"{place}.{key}".lstrip("."))


def check_value(value: Any, hint: Any, place: str) -> None:
    """Raise InputError for a value that an annotation rules out, and for a node that builds something else."""
    if isinstance(value, Mapping) and TARGET in value:
        kinds = [kind for kind in _iter_choices(hint) if isinstance(kind, type) and not _is_plain(kind)]
        if not kinds:
            raise InputError(f"{place}: _target_ is not allowed here; expected {_describe_expected('', hint)}")
        check_node(value, place, *kinds)
    elif not _fits(value, hint):
        raise InputError(f"{place}={show_value(value)}: expected {_describe_expected(value, hint)}")
    else:
        for key, inner, inner_hint in _iter_parts(value, hint, place):
            check_value(inner, inner_hint, f"{place}.{key}")


def _get_hints(called: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(called.__init__ if inspect.isclass(called) else called, include_extras=True)
    except Exception:  # names that only a type checker imports
        return {}


def _is_plain(kind: type) -> bool:
    """Return whether it is Python's own: a number, a list, a path; a node builds none of these."""
    return kind.__module__.partition(".")[0] in sys.stdlib_module_names


def _iter_choices(hint: Any) -> Iterator[Any]:
    """Yield the alternatives of an annotation, without bounds."""
    if get_origin(hint) in (Union, UnionType):
        for choice in get_args(hint):
            yield from _iter_choices(choice)
    else:
        yield get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _iter_parts(value: Any, hint: Any, place: str) -> Iterator[tuple[Any, Any, Any]]:
    """Yield key, value and annotation of what is inside a list or a mapping."""
    fitting = next((choice for choice in _iter_choices(hint) if _fits(value, choice)), Any)
    inside = get_args(fitting)
    if isinstance(value, Mapping) and is_typeddict(fitting):
        hints = get_type_hints(fitting, include_extras=True)
        for key, inner in value.items():
            if key not in hints:
                raise InputError(f"{place}.{key}: no such setting{suggest_nearest(str(key), list(hints))}")
            yield key, inner, hints[key]
    elif isinstance(value, Mapping):
        yield from ((key, inner, inside[1] if len(inside) == 2 else Any) for key, inner in value.items())
    elif isinstance(value, list):
        yield from ((number, inner, inside[0] if inside else Any) for number, inner in enumerate(value))


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a parameter with this annotation may take a plain value, apart from what is inside; true in doubt."""
    kind = get_origin(hint) or hint
    if kind is Literal:
        return any(value == choice and type(value) is type(choice) for choice in get_args(hint))
    if kind in (Union, UnionType):
        return any(_fits(value, choice) for choice in get_args(hint))
    if kind is Annotated:
        inner, *bounds = get_args(hint)
        return _fits(value, inner) and all(bound.holds(value) for bound in bounds if isinstance(bound, Within))
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool) and is_sound(value)
    if is_typeddict(kind) or kind in MAPPINGS:
        return isinstance(value, Mapping)
    if kind in LISTS:
        return isinstance(value, list)
    return kind is Any or not isinstance(kind, type) or isinstance(value, kind)


def _describe_expected(value: Any, hint: Any) -> str:
    kind: Any = get_origin(hint) or hint
    if kind is Literal:
        return suggest_choices(str(value), [str(choice) for choice in get_args(hint)])
    if kind in (Union, UnionType):
        return " or ".join(_describe_expected(value, choice) for choice in get_args(hint))
    if kind is Annotated:
        inner, *bounds = get_args(hint)
        within = [str(bound) for bound in bounds if isinstance(bound, Within)]
        return f"{_describe_expected(value, inner)}, {within[0]}" if within else _describe_expected(value, inner)
    return "a mapping" if is_typeddict(kind) else WORDS.get(kind, f"a _target_ of {getattr(kind, '__name__', kind)}")
