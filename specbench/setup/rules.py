"""The values that settings may have, beyond their types. Imports no torch."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from specbench.errors import InputError
from specbench.records.nested import look_up

Test = Callable[[Any], bool]
Rule = tuple[Test, str]  # whether a value is allowed, and the values that are, in words
Rules = dict[str, Rule]  # by the setting's dotted name


def is_whole(value: Any, least: int = 1) -> bool:
    return type(value) is int and value >= least


def is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def is_positive(value: Any) -> bool:
    return is_number(value) and value > 0


def is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def or_null(test: Test) -> Test:
    return lambda value: value is None or test(value)


WHOLE: Rule = (is_whole, "a whole number, at least 1")
POSITIVE: Rule = (is_positive, "a number above 0")
LEAST_LEVEL = 0.0001  # far below, the p-value of a G-test is a poor approximation
SHARED: Rules = {
    "limit": (or_null(is_whole), "a number of questions per task, at least 1, or null for all"),
    "out": (or_null(is_text), "a folder, or null"),
    "target.shape": (or_null(is_text), "the name of a shape, or null"),
}
SAMPLING: Rules = {
    "sampling.max_new_tokens": WHOLE,
    "sampling.temperature": (
        lambda value: is_number(value) and (value == 0 or 0.001 <= value <= 1000),
        "0 (greedy), or a number from 0.001 to 1000",
    ),
    "sampling.top_p": (lambda value: is_number(value) and 0 < value <= 1, "a number above 0, at most 1 (all tokens)"),
    "sampling.top_k": (lambda value: is_whole(value, 0), "a whole number, at least 0 (all tokens)"),
}
RUN: Rules = {
    "repeats": WHOLE,
    "threads": (or_null(is_whole), "a whole number, at least 1, or null for torch's choice"),
}
CERTIFY: Rules = {
    "sampling.temperature": (lambda value: is_number(value) and 0.01 <= value <= 10, "a number from 0.01 to 10"),
    "level": (
        lambda value: type(value) is float and LEAST_LEVEL <= value < 1,
        f"a probability, at least {LEAST_LEVEL} and below 1",
    ),
    "draws": (lambda value: is_whole(value, 256), "a whole number, at least 256"),
}
TRAIN: Rules = (
    dict.fromkeys(("batch_tokens", "accumulate", "save_every", "max_new_tokens", "held_out"), WHOLE)
    | dict.fromkeys(("search.trials", "search.prompts", "search.max_new_tokens"), WHOLE)
    | dict.fromkeys(("epochs", "rate"), POSITIVE)
    | {"muon": (or_null(is_positive), "a number above 0, or null")}
)
DATASTORE: Rules = {
    "max_new_tokens": WHOLE,
    "chunk_tokens": (or_null(is_whole), "a number of tokens, at least 1, or null"),
    "data": (or_null(is_text), "a file, or null"),
    "dataset": (or_null(is_text), "a data set's hub id, or null"),
    "field": (or_null(is_text), "the name of a field, or null"),
    "limit": (or_null(is_whole), "a number of documents (of a suite, questions per task), or null"),
}
RULES: dict[str, Rules] = {  # by root config
    "config": SHARED | SAMPLING | RUN,
    "certify": SHARED | SAMPLING | CERTIFY,
    "train": SHARED | TRAIN,
    "datastore": SHARED | DATASTORE,
}


def check_rules(plain: Mapping[str, Any], root: str) -> None:
    """Raise InputError for the first setting of a root config whose rule does not hold."""
    for name, (holds, expected) in RULES[root].items():
        value = look_up(plain, name)
        if not holds(value):
            given = "null" if value is None else value
            raise InputError(f"{name}={given}: expected {expected}")
