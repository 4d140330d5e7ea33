"""Skip sets as files: YAML with `attention` and `mlp`, lists of 0-based layer numbers."""

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
SHARE = 0.25  # of all sublayers that a random set skips: most of a random target's drafts are still right


def load_skip_set(checkpoint: str | None, layers: int) -> SkipSet:
    """A target's skip set: from a file, a folder with skip.yaml, or `random`. Raises InputError."""
    if checkpoint is None:
        raise InputError(
            "this target names no such checkpoint: set method.LABEL.checkpoint to a skip set's file or folder or random"
        )
    if checkpoint == RANDOM:
        return draw_skip_set(layers)
    path = _find_file(checkpoint)
    found = _read_skip_set(path)
    if wrong := describe_misfit(found, layers):
        raise InputError(f"{path}: {wrong}")
    return found


def check_shape(labels: Sequence[str], shape: str | None, sizes: Any) -> None:
    """Of methods that skip layers, on an expanded target. Raises InputError for a shape with layers that do nothing."""
    if labels and isinstance(sizes, Mapping) and "num_hidden_layers" in sizes:
        raise InputError(
            f"method.{labels[0]}: the layers that target.shape={shape} adds do nothing, so that skipping them says nothing of a "
            "trained model; leave the method out"
        )


def draw_skip_set(layers: int) -> SkipSet:
    """The same for every target of so many layers."""
    count = max(1, round(SHARE * 2 * layers))
    chosen = random.Random(SEED).sample(range(2 * layers), count)
    return SkipSet.of([place in chosen for place in range(2 * layers)])


def write_skip_set(skipped: SkipSet, folder: Path) -> None:
    lines = [f"{name}: {list(getattr(skipped, name))}\n" for name in ("attention", "mlp")]
    (folder / FILE).write_text("".join(lines), encoding="utf-8")


def _find_file(checkpoint: str) -> Path:
    given = next((path for path in (ROOT / checkpoint, Path(checkpoint).expanduser()) if path.exists()), None)
    path = given / FILE if given is not None and given.is_dir() else given
    if path is None or not path.is_file():
        raise InputError(f"no skip set at {checkpoint}: expected a YAML file, or a folder with {FILE}")
    return path


def _read_skip_set(path: Path) -> SkipSet:
    try:
        found: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    if not (isinstance(found, dict) and set(found) == {"attention", "mlp"} and all(map(_is_number_list, found.values()))):
        raise InputError(f"{path}: expected two lists of layer numbers, attention: [...] and mlp: [...]")
    return SkipSet(tuple(found["attention"]), tuple(found["mlp"]))


def _is_number_list(found: Any) -> bool:
    return isinstance(found, list) and all(type(one) is int for one in found)


def describe_misfit(skipped: SkipSet, layers: int) -> str:
    """What is wrong with a skip set for a target of so many layers; empty when nothing is."""
    for name, numbers in (("attention", skipped.attention), ("mlp", skipped.mlp)):
        for number in numbers:
            if not 0 <= number < layers:
                return f"{name}: the target has no layer {number}; expected 0 to {layers - 1}"
            if numbers.count(number) > 1:
                return f"{name}: layer {number} stands there twice"
    if len(skipped.attention) == len(skipped.mlp) == layers:
        return f"skips all {2 * layers} sublayers: expected one to stay, at least"
    return ""
