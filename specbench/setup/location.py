"""Find the class or function that a `_target_` names. Its module's source is read before the module runs.

So a wrong name runs no code: neither a module of the standard library, nor a module that lacks the name or defines it as a
function without a return annotation.
"""

import ast
import re
import sys
from collections.abc import Sequence
from importlib.abc import InspectLoader
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pkgutil import resolve_name
from typing import Any

from specbench.errors import InputError, format_error, show_value, suggest_nearest

DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")


def locate(target: Any, place: str, kinds: Sequence[type]) -> Any:
    """Return what a `_target_` names. Raises InputError if its module does not exist, does not run, or holds no such class.

    kinds: what it may build. A class without a base can only be one of them itself.
    """
    if not isinstance(target, str) or not DOTTED.fullmatch(target):
        expected = "expected a class with its module, such as methods.pld.PromptLookup"
        raise InputError(f"{place}: _target_ {show_value(target)}: {expected}")
    try:
        if wrong := _look(target, kinds):
            raise InputError(wrong)
        return resolve_name(target)
    except ModuleNotFoundError as error:
        reason = f"no module {error.name}"
    except InputError as error:
        reason = str(error)
    except (Exception, SystemExit) as error:  # of that module
        reason = format_error(error)
    raise InputError(f"{place}: _target_ {target}: {reason}")


def _look(target: str, kinds: Sequence[type]) -> str:
    """Return why a name cannot be a class that fits here, judging by its module's source alone; empty if it may be one."""
    spec, names = _find_module(target.split("."))
    if spec is None:
        return f"no module {target.partition('.')[0]}"
    if spec.name.partition(".")[0] in sys.stdlib_module_names:
        return "is in the standard library; expected a class of specbench or of your own"
    if not names:
        return "is a module; expected a class in it"
    source = spec.loader.get_source(spec.name) if isinstance(spec.loader, InspectLoader) else None
    if source is None:
        return f"{spec.name} has no Python source"
    itself = target in [f"{kind.__module__}.{kind.__qualname__}" for kind in kinds]
    return "" if itself else _look_in_source(ast.parse(source, spec.origin or spec.name), spec.name, names)


def _find_module(parts: Sequence[str]) -> tuple[ModuleSpec | None, Sequence[str]]:
    """Return the innermost module of a dotted name and the names after it. Nothing is imported."""
    try:
        spec = find_spec(parts[0])
    except ValueError:  # __main__ may have no spec
        return None, parts
    for depth in range(1, len(parts)):
        if spec is None or spec.submodule_search_locations is None:
            return spec, parts[depth:]
        inner = PathFinder.find_spec(".".join(parts[: depth + 1]), list(spec.submodule_search_locations))
        if inner is None:
            return spec, parts[depth:]
        spec = inner
    return spec, ()


def _look_in_source(tree: ast.Module, module: str, names: Sequence[str]) -> str:
    first = names[0]
    definitions = [node for node in ast.walk(tree) if getattr(node, "name", None) == first and not isinstance(node, ast.alias)]
    if definitions:
        return "" if any(map(_may_build, definitions)) else f"{first} has no base class, and is not annotated to return one"
    known = set(_list_names(tree))
    if first in known or known & {"*", "__getattr__"}:
        return ""
    if len(names) > 1:
        return f"no module {module}.{first}"
    if missing := next(filter(_is_missing, _list_imports(tree)), None):
        return f"no module {missing}"
    return f"{module} has no {first}{suggest_nearest(first, sorted(name for name in known if not name.startswith('_')))}"


def _may_build(node: ast.AST) -> bool:
    """Return whether a definition may be a subclass, or a function annotated to return one."""
    return bool(getattr(node, "bases", None)) or getattr(node, "returns", None) is not None


def _list_imports(tree: ast.Module) -> list[str]:
    """Return the packages that a module imports by their full names."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level]
    return [name.partition(".")[0] for name in names]


def _is_missing(package: str) -> bool:
    return package not in sys.modules and find_spec(package) is None


def _list_names(tree: ast.Module) -> list[str]:
    """Return the names that a module imports, assigns or defines, at any level."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.alias):
            names.append(node.asname or node.name.partition(".")[0])
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.append(node.id)
        elif isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            names.append(node.name)
    return names
