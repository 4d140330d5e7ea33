"""Which hidden states of the target a drafter reads: the keys of config.json that say so, and what a new network taps."""

from typing import Any

from specbench.drafters.config_keys import Rule, is_whole

WORDS = {3: "three"}


def require_taps(least: int, most: int, counts: range, what: str = "whole numbers") -> Rule:
    """Return the rule of a list of different layers from `least` to `most`, as many as `counts` allows."""
    number = WORDS.get(counts[0], counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return Rule(f"{number} different {what} from {least} to {most}", lambda value: are_taps(value, least, most, counts))


def are_taps(value: Any, least: int, most: int, counts: range) -> bool:
    whole = isinstance(value, list) and len(value) in counts and all(is_whole(tap) and least <= tap <= most for tap in value)
    return whole and (len(set(value)) == len(value) or most - least + 1 < len(value))


def choose_taps(layers: int) -> list[int]:
    """Return the inputs of layers 2, L/2 and L - 3, as EAGLE-3's authors; of a target too shallow for these, others."""
    published = sorted((2, layers // 2, layers - 3))
    distinct = len(set(published)) == len(published) and min(published) >= 0
    return published if distinct else [max(0, layers // 2 - 1), layers // 2, max(layers // 2 + 1, layers - 1)]


def choose_spread_layers(layers: int, count: int) -> list[int]:
    """Return `count` layers whose outputs a network reads, spread as in z-lab's DFlash; of a shallow target, its last ones."""
    if count == 1:
        return [layers // 2]
    spread = [round(1 + place * (layers - 4) / (count - 1)) for place in range(count)]
    return spread if spread == sorted(set(spread)) and spread[0] >= 0 else list(range(max(0, layers - count), layers))
