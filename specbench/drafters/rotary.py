"""Rotary settings of a drafter's config.json, in the spellings of transformers 4 and 5."""

from collections.abc import Mapping
from typing import Any

from specbench.drafters.config_keys import FLAG, POSITIVE, Rule, check_config, format_value
from specbench.errors import InputError, suggest_choices

THETA = 10000.0  # where no rope_theta is given
NEEDED = Rule(POSITIVE.expected, POSITIVE.allows, required=True)
LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
YARN = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")  # if given
TYPES: Mapping[str, Mapping[str, Rule]] = {  # those whose frequencies do not depend on the text's length
    "default": {},
    "linear": {"factor": NEEDED},
    "llama3": dict.fromkeys(LLAMA3, NEEDED),
    "yarn": {
        **dict.fromkeys(("factor", "original_max_position_embeddings"), NEEDED),
        **dict.fromkeys(YARN, POSITIVE),
        "truncate": FLAG,
    },
}
MAPPING = Rule("a mapping such as {rope_type: linear, factor: 2}", lambda value: isinstance(value, dict))
ROTARY_KEYS: Mapping[str, Rule] = {"rope_theta": POSITIVE, "rope_scaling": MAPPING, "rope_parameters": MAPPING}


def read_rotary(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return transformers 5's rope_parameters of a checked config.json.

    They are under rope_theta and rope_scaling (transformers 4) or rope_parameters (5). Raises InputError if two of them
    contradict each other, and for types and keys that are not honoured.
    """
    old, new = config.get("rope_scaling"), config.get("rope_parameters")
    if old is not None and new is not None and old != new:
        raise InputError(
            f"rope_scaling={format_value(old)} contradicts rope_parameters={format_value(new)}; expected one of them"
        )
    where = "rope_scaling." if new is None else "rope_parameters."
    given = dict(new or old or {})
    kind = _pop_type(given, where)
    theta = _pop_theta(given, config.get("rope_theta"), where)
    used = check_config(given, TYPES[kind], where)
    return {"rope_type": kind, "rope_theta": theta, **{key: used[key] for key in TYPES[kind] if key in used}}


def _pop_type(given: dict[str, Any], where: str) -> str:
    """Take rope_type, in older files `type`, out of the settings."""
    names = [name for name in (given.pop("rope_type", None), given.pop("type", None)) if name is not None]
    for name in names:
        if not isinstance(name, str) or name not in TYPES or name != names[0]:
            raise InputError(f"{where}rope_type={format_value(name)}: expected {suggest_choices(str(name), list(TYPES))}")
    return names[0] if names else "default"


def _pop_theta(given: dict[str, Any], outside: float | None, where: str) -> float:
    inside = given.pop("rope_theta", None)
    if inside is not None and not POSITIVE.allows(inside):
        raise InputError(f"{where}rope_theta={format_value(inside)}: expected {POSITIVE.expected}")
    if inside is not None and outside is not None and inside != outside:
        raise InputError(f"{where}rope_theta={inside} contradicts rope_theta={outside}; expected one of them")
    return float(inside or outside or THETA)
