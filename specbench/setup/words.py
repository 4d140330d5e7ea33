"""Settings as words KEY=VALUE: those of a command line, checked, and values of Python."""

import re
from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString

from specbench.errors import InputError
from specbench.setup.compose import GROUPS, list_options
from specbench.setup.overrides import LISTS

SECTIONS = (*GROUPS, "sampling")
BARE = re.compile(r"(?!(?:null|true|false|nan|inf)$)[A-Za-z_][\w./-]*", re.IGNORECASE)  # text that needs no quotes


def check_words(words: Sequence[str], config_dir: Path | None) -> list[str]:
    """Return the words as Hydra takes them. Raises InputError for anything but KEY=VALUE."""
    for word in words:
        key, equals, _ = word.partition("=")
        if not key or not (equals or key.startswith("~")):
            raise InputError(f"{word}: expected KEY=VALUE, {_suggest_word(word, config_dir)}")
    return [f"++{word}" if word.startswith("sweep.") else word for word in words]


def _suggest_word(given: str, config_dir: Path | None) -> str:
    """Return the word that a bare name may stand for."""
    for group in GROUPS:
        if given in list_options(group, config_dir):
            return f"such as {group}=[{given}]" if group in LISTS else f"such as {group}={given}"
    return "such as limit=10 or method=[pld,sps]"


def format_words(settings: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return settings of Python as words, those of a section one by one. prefix: what stands before their names.

    Raises InputError for an odd value.
    """
    words = []
    for name, value in settings.items():
        if not prefix and name in SECTIONS and isinstance(value, Mapping):
            words += format_words(value, f"{name}.")
        else:
            words.append(f"{prefix}{name}={format_value(value, f'{prefix}{name}')}")
    return words


def format_value(value: Any, name: str) -> str:
    """Return a value as Hydra reads it: null, true, 3, [a, b], {enable_thinking: false}. name: of the setting, for a message."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (str, PathLike)):
        return _quote(str(value))
    if isinstance(value, Integral):
        return str(int(value))
    if isinstance(value, Real):
        return repr(float(value))
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(format_value(inner, name) for inner in value)}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(_iter_pairs(value, name))}}}"
    raise InputError(f"{name}: expected text, a number, True, False, None, a list or a dict; found {type(value).__name__}")


def _iter_pairs(value: Mapping[Any, Any], name: str) -> Iterator[str]:
    return (f"{key}: {format_value(inner, f'{name}.{key}')}" for key, inner in value.items())


def _quote(text: str) -> str:
    return text if BARE.fullmatch(text) else QuotedString(text, Quote.single).with_quotes()
