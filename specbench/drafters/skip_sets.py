"""Skip-set files: YAML with `attention` and `mlp`, lists of 0-based layer numbers."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from specbench import ROOT
from specbench.drafters.checkpoints import RANDOM
from specbench.drafters.skipping import SkipSet
from specbench.errors import InputError

FILE = "skip.yaml"
SEED = 0  # of random sets
SHARE = 0.25  # of all sublayers, skipped by a random set; most drafts of a random target remain right


def load_skip_set(checkpoint: str | None, layers: int) -> SkipSet:
    """Load a target's skip set from a file, a folder with skip.yaml, or `random`. Raises InputError."""
    path = find_skip_set(checkpoint)
    if path is None:
        return draw_skip_set(layers)
    skip_set = _read_skip_set(path)
    if wrong := describe_misfit(skip_set, layers):
        raise InputError(f"{path}: {wrong}")
    return skip_set


def find_skip_set(checkpoint: str | None) -> Path | None:
    """Return the file of a skip set; None for `random`. Raises InputError if there is none."""
    if checkpoint is None:
        raise InputError("this target names no skip set: set method.LABEL.checkpoint to a skip set's file or folder or random")
    return None if checkpoint == RANDOM else _find_file(checkpoint)


def check_shape(labels: Sequence[str], shape: str | None, sizes: Any) -> None:
    """Raise InputError if methods that skip layers run on a shape with added layers, which do nothing."""
    if labels and isinstance(sizes, Mapping) and "num_hidden_layers" in sizes:
        raise InputError(
            f"method.{labels[0]}: the layers that target.shape={shape} adds do nothing, so skipping them says nothing about a "
            "trained model; leave the method out"
        )


def draw_skip_set(layers: int) -> SkipSet:
    """Draw a random skip set, the same for all targets with this number of layers."""
    count = max(1, round(SHARE * 2 * layers))
    chosen = random.Random(SEED).sample(range(2 * layers), count)
    return SkipSet.of([sublayer in chosen for sublayer in range(2 * layers)])


def write_skip_set(skipped: SkipSet, folder: Path) -> None:
    lines = [f"{name}: {list(getattr(skipped, name))}\n" for name in ("attention", "mlp")]
    (folder / FILE).write_text("".join(lines), encoding="utf-8")


def _find_file(checkpoint: str) -> Path:
    given = next((path for path in (Path(checkpoint).expanduser(), ROOT / checkpoint) if path.exists()), None)
    path = given / FILE if given is not None and given.is_dir() else given
    if path is None or not path.is_file():
        raise InputError(f"no skip set at {checkpoint}: expected a YAML file, or a folder with {FILE}")
    return path


def _read_skip_set(path: Path) -> SkipSet:
    try:
        lists: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    if not (isinstance(lists, dict) and set(lists) == {"attention", "mlp"} and all(map(_is_number_list, lists.values()))):
        raise InputError(f"{path}: expected two lists of layer numbers, attention: [...] and mlp: [...]")
    return SkipSet(tuple(lists["attention"]), tuple(lists["mlp"]))


def _is_number_list(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)


def describe_misfit(skipped: SkipSet, layers: int) -> str:
    """Return what is wrong with a skip set for a target with `layers` layers, or an empty string."""
    for name, numbers in (("attention", skipped.attention), ("mlp", skipped.mlp)):
        for number in numbers:
            if not 0 <= number < layers:
                return f"{name}: the target has no layer {number}; expected 0 to {layers - 1}"
            if numbers.count(number) > 1:
                return f"{name}: layer {number} is given twice"
    if len(skipped.attention) == len(skipped.mlp) == layers:
        return f"skips all {2 * layers} sublayers; expected at least one to remain"
    return ""
