"""The values that settings may have, beyond their types. Imports no torch."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from specbench.bounds import LARGEST
from specbench.errors import InputError, show_value
from specbench.records.nested import look_up

Test = Callable[[Any], bool]
Rule = tuple[Test, str]  # whether a value is allowed, and the values that are, in words
Rules = dict[str, Rule]  # by the setting's dotted name


def is_whole(value: Any, least: int = 1, most: int = LARGEST) -> bool:
    return type(value) is int and least <= value <= most


def is_number(value: Any, least: float, most: float) -> bool:
    return type(value) in (int, float) and least <= value <= most


def is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def is_line(value: Any) -> bool:
    return is_text(value) and value.isprintable()


def is_stop_list(value: Any) -> bool:
    """Return whether it is a list of texts that an answer can contain: none is empty, or the replacement character."""
    return isinstance(value, list) and 1 <= len(value) <= MOST_STOPS and all(map(is_stop, value))


def is_stop(text: Any) -> bool:
    return is_text(text) and "\ufffd" not in text and len(text.encode(errors="replace")) <= LONGEST_STOP


def is_choice(value: Any, kinds: tuple[type, ...]) -> bool:
    """Whether it is a list of names, at least one; of questions, numbers may be names."""
    return isinstance(value, list) and value != [] and all(type(one) in kinds and str(one).strip() for one in value)


def parse_duration(value: Any) -> int | None:
    """Return the seconds of a time such as 90s, 30m, 2h or 1h30m; None for anything else."""
    found = re.fullmatch(r"(?:(\d{1,4})h)?(?:(\d{1,6})m)?(?:(\d{1,8})s)?", value, re.ASCII) if is_text(value) else None
    return sum(int(number or 0) * unit for number, unit in zip(found.groups(), (3600, 60, 1), strict=True)) if found else None


def is_budget(value: Any) -> bool:
    return (parse_duration(value) or 0) >= LEAST_BUDGET


def or_null(test: Test) -> Test:
    return lambda value: value is None or test(value)


def count(most: int, least: int = 1) -> Rule:
    """Return the rule of a number of things."""
    return partial(is_whole, least=least, most=most), f"a whole number, at least {least:,} and at most {most:,}"


def count_or_all(what: str, null: str = "") -> Rule:
    """Return the rule of a number of things that null does not limit."""
    return or_null(partial(is_whole, most=MILLION)), f"a number of {what}, at least 1, or null{null} (at most {MILLION:,})"


MILLION = 1_000_000
MOST_TOKENS = 10_000_000  # of an answer; the longest contexts have as many
MOST_STOPS = 64
LONGEST_STOP = 256
MOST_BATCH = 4096
MOST_CONCURRENCY = 4096
MOST_THREADS = 1024  # `objects.check_threads` knows how many cores there are
LEAST_BUDGET = 10  # seconds; no run has loaded, warmed up and timed anything worth a table before
LEAST_LEVEL = 0.0001  # far below, the p-value of a G-test is a poor approximation
LEAST_SHARE = 0.0001  # of top_p: below, only one token is left, as at temperature 0
SEED: Rule = (partial(is_whole, least=0), f"a whole number, at least 0 and at most {LARGEST:,}")
SHARED: Rules = {
    "limit": count_or_all("questions per task", " for all"),
    "out": (or_null(is_text), "a folder, or null"),
    "target.shape": (or_null(is_text), "the name of a shape, or null"),
    **dict.fromkeys(("suite.licence", "suite.source"), (or_null(is_line), "a line of text, or null")),
}
QUESTIONS: Rules = {
    "question": (or_null(partial(is_choice, kinds=(int, str))), "a list of questions' ids, such as [81, q2], or null for all"),
    "category": (or_null(partial(is_choice, kinds=(str,))), "a list of categories, such as [writing, math], or null for all"),
}
SAMPLING: Rules = {
    "sampling.max_new_tokens": count(MOST_TOKENS),
    "sampling.min_new_tokens": (
        or_null(partial(is_whole, most=MOST_TOKENS)),
        f"a number of tokens, at least 1, or null (at most {MOST_TOKENS:,})",
    ),
    "sampling.stop": (or_null(is_stop_list), f"a list of 1 to {MOST_STOPS} texts of at most {LONGEST_STOP} bytes, or null"),
    "sampling.temperature": (
        lambda value: is_number(value, 0, 0) or is_number(value, 0.001, 1000),
        "0 (greedy), or a number from 0.001 to 1000",
    ),
    "sampling.top_p": (
        lambda value: is_number(value, LEAST_SHARE, 1),
        f"a number above 0, at most 1 (all tokens), and not below {LEAST_SHARE:g}",
    ),
    "sampling.top_k": (
        lambda value: is_whole(value, 0, MOST_TOKENS),
        f"a whole number, at least 0 (all tokens) and at most {MOST_TOKENS:,}",
    ),
}
RUN: Rules = {
    "seed": SEED,
    "budget": (
        or_null(is_budget),
        f"a time with its unit, such as 90s, 30m, 2h or 1h30m (at least {LEAST_BUDGET}s), or null for none",
    ),
    "log": (or_null(is_text), "a file, or null"),
    "repeats": count(10_000),
    "batch": count(MOST_BATCH),
    "concurrency": count(MOST_CONCURRENCY),
    "threads": (
        or_null(partial(is_whole, most=MOST_THREADS)),
        f"a whole number, at least 1, or null for torch's choice (at most {MOST_THREADS:,})",
    ),
}
CERTIFY: Rules = {
    "seed": SEED,
    "sampling.temperature": (lambda value: is_number(value, 0.01, 10), "a number from 0.01 to 10"),
    "level": (
        lambda value: type(value) is float and LEAST_LEVEL <= value < 1,
        f"a probability, at least {LEAST_LEVEL} and below 1",
    ),
    "draws": count(100_000_000, least=256),
}
TRAIN: Rules = (
    dict.fromkeys(("accumulate", "save_every", "held_out", "search.trials", "search.prompts"), count(MILLION))
    | dict.fromkeys(("batch_tokens", "max_new_tokens", "search.max_new_tokens"), count(MOST_TOKENS))
    | {
        "seed": count(2**32 - 1, least=0),  # of numpy's generators
        "questions.count": count(MILLION),
        "questions.max_new_tokens": count(MOST_TOKENS),
        "questions.openings": (lambda value: isinstance(value, list) and value != [], "a list of texts, at least one"),
        "questions.temperature": (lambda value: is_number(value, 0.001, 1000), "a number from 0.001 to 1000"),
        "questions.top_p": SAMPLING["sampling.top_p"],
        "epochs": (lambda value: is_number(value, 1e-6, 10_000), "a number above 0, at most 10,000"),
        "rate": (lambda value: is_number(value, 1e-12, 10), "a number above 0, at most 10"),
        "muon": (or_null(lambda value: is_number(value, 1e-12, 10)), "a number above 0, at most 10, or null"),
    }
)
DATASTORE: Rules = {
    "seed": SEED,
    "max_new_tokens": count(MOST_TOKENS),
    "chunk_tokens": (or_null(partial(is_whole, most=2**40)), "a number of tokens, at least 1, or null (at most 2^40)"),
    "data": (or_null(is_text), "a file, or null"),
    "dataset": (or_null(is_text), "a data set's hub id, or null"),
    "field": (or_null(is_text), "the name of a field, or null"),
    "limit": (
        or_null(is_whole),
        "a number of documents (of a suite, questions per task), at least 1, or null",
    ),
}
RULES: dict[str, Rules] = {  # by root config
    "config": SHARED | QUESTIONS | SAMPLING | RUN,
    "certify": SHARED | QUESTIONS | SAMPLING | CERTIFY,
    "train": SHARED | TRAIN,
    "datastore": SHARED | DATASTORE,
}


def check_rules(plain: Mapping[str, Any], rules: Rules) -> None:
    """Raise InputError for the first setting whose rule does not hold."""
    for name, (holds, expected) in rules.items():
        if not holds(value := look_up(plain, name)):
            raise InputError(f"{name}={show_value(value)}: expected {expected}")
    if plain.get("budget") and plain["concurrency"] > 1:
        given = f"budget={plain['budget']} concurrency={plain['concurrency']}"
        raise InputError(f"{given}: under load a pass counts as a whole or not at all; expected budget=null")
