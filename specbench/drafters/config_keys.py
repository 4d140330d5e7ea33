"""The keys of a drafter's config.json: each is used, has no effect on drafting, or is refused by name."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from specbench.errors import InputError, show_value, suggest_choices, suggest_nearest

LARGEST = 1 << 24  # of a size: with larger ones, the number of a matrix's entries overflows
MOST = 64  # heads, or layers of a head
WITHOUT_EFFECT = frozenset(  # on drafting, whatever their value; found in the published files
    (
        *("architectures", "auto_map", "model_type", "target_model_type", "base_model_name_or_path", "_name_or_path"),
        *("transformers_version", "torch_dtype", "dtype", "use_cache", "pretraining_tp"),
        *("bos_token_id", "eos_token_id", "pad_token_id"),
        *("initializer_range", "attention_dropout", "dropout_rate", "max_window_layers", "max_sequence_length"),
    )
)
NEUTRAL: Mapping[str, Any] = {  # the one value under which the key has no effect; other values change what must be computed
    "attention_bias": False,
    "fc_norm": False,
    "mlp_bias": False,
    "norm_before_fc": False,
    "norm_before_residual": False,
    "norm_output": False,
    "tie_word_embeddings": False,
    "partial_rotary_factor": 1.0,
    "use_sliding_window": False,
    "sliding_window": None,
}


@dataclass(frozen=True)
class Rule:
    """The values that a key may have. choices: all of them, if they are names."""

    expected: str
    allows: Callable[[Any], bool]
    required: bool = False
    choices: tuple[str, ...] = ()

    def describe(self, value: Any) -> str:
        """Return what was expected instead of a value."""
        return suggest_choices(str(value), self.choices) if self.choices else self.expected


Rules = Mapping[str, Rule]
ANY = Rule("anything", lambda value: True)
FLAG = Rule("true or false", lambda value: isinstance(value, bool))
POSITIVE = Rule("a positive number", lambda value: is_number(value) and value > 0)


def require_whole(least: int = 1, most: int = LARGEST, required: bool = False) -> Rule:
    return Rule(f"a whole number from {least} to {most}", lambda value: is_whole(value) and least <= value <= most, required)


def require_equal(value: int, whose: str, required: bool = False) -> Rule:
    return Rule(f"{value}, {whose}", lambda given: is_whole(given) and given == value, required)


def require_name(choices: Iterable[str], required: bool = False) -> Rule:
    names = tuple(choices)
    return Rule(f"one of {', '.join(names)}", lambda value: isinstance(value, str) and value in names, required, names)


def is_whole(value: Any) -> bool:
    return type(value) is int


def is_number(value: Any) -> bool:
    """Return whether it is a finite number of a size that float32 holds."""
    return type(value) in (int, float) and -1e30 < value < 1e30


def check_config(config: Mapping[str, Any], rules: Rules, where: str = "") -> dict[str, Any]:
    """Return a config.json without its nulls, which mean that a key is absent.

    rules: of the keys that are used. where: a prefix of messages. Raises InputError for a key that is neither used nor without
    effect, for a value that its rule does not allow, and for a missing key.
    """
    for key, value in config.items():
        if value is not None and not (key == "sliding_window" and config.get("use_sliding_window") is False):
            _check_key(key, value, rules, where)
        elif key not in rules and key not in NEUTRAL and key not in WITHOUT_EFFECT:
            raise _refuse_unknown(key, value, rules, where)
    given = {key: value for key, value in config.items() if value is not None}
    for key, rule in rules.items():
        if rule.required and key not in given:
            raise InputError(f"{where}{key} is missing; expected {rule.expected}")
    return given


def _check_key(key: str, value: Any, rules: Rules, where: str) -> None:
    if key in rules:
        if not rules[key].allows(value):
            raise InputError(f"{where}{key}={format_value(value)}: expected {rules[key].describe(value)}")
    elif key in NEUTRAL:
        if not _is_neutral(value, NEUTRAL[key]):
            raise InputError(f"{where}{key}={format_value(value)} is not supported; expected {json.dumps(NEUTRAL[key])}")
    elif key not in WITHOUT_EFFECT:
        raise _refuse_unknown(key, value, rules, where)


def _refuse_unknown(key: str, value: Any, rules: Rules, where: str) -> InputError:
    nearest = suggest_nearest(key, [*rules, *NEUTRAL]) or "; is this another method's checkpoint?"
    return InputError(f"{where}{format_value(key)}: no such key is supported (its value: {format_value(value)}){nearest}")


def _is_neutral(value: Any, neutral: Any) -> bool:
    return bool(value == neutral) and isinstance(value, bool) == isinstance(neutral, bool)


def format_value(value: Any) -> str:
    """Return a value as JSON, on one line and cut to a readable length."""
    return show_value(json.dumps(value))
