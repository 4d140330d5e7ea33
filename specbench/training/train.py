"""`specbench train`: from a config to what a drafter needs for its target, and a card of how it was made."""

from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import yaml
from accelerate import PartialState

from specbench.decoding.drafter import Drafter
from specbench.drafters.network_drafter import NetworkDrafter
from specbench.drafters.skipping_drafter import SkippingDrafter
from specbench.errors import InputError
from specbench.machine.devices import pick_device
from specbench.records.moved import translate_targets
from specbench.records.trial import BASELINE
from specbench.setup.instantiate import check_node, locate_class
from specbench.setup.rules import look_up
from specbench.setup.settings import TrainSettings
from specbench.training import search, weights
from specbench.watch import Watch

CONFIG = "train.yaml"
WAITING = timedelta(days=7)  # at most, while the first process lets the target answer and the others wait


class TrainingMode(Protocol):
    """How something is learned: a module. SETTINGS of conf/train.yaml are for it alone; DONE is a participle."""

    SETTINGS: tuple[str, ...]
    DONE: str

    def check(self, settings: TrainSettings, drafter: type[Any]) -> None:
        """Raises InputError for settings that do not fit the drafter."""

    def make(self, settings: TrainSettings, label: str, drafter: type[Any], out: Path, watch: Watch) -> None:
        """Leaves in `out` what the drafter reads as its checkpoint, and goes on with what lies there."""


MODES: dict[type[Drafter], TrainingMode] = {
    NetworkDrafter: weights,
    SkippingDrafter: search,
}  # what a drafter of each kind learns


def train(settings: TrainSettings, watch: Watch) -> Path:
    """The folder of the checkpoint. Raises InputError.

    Of several processes (torchrun, accelerate launch) the first one writes and watches.
    """
    label = _choose_method(settings)
    drafter, way = _check_config(settings, label)
    processes = PartialState(cpu=pick_device(settings.target.device).type == "cpu", timeout=WAITING)
    with processes.main_process_first():
        out = _prepare_folder(settings, label)
    seen = watch if processes.is_main_process else lambda *_: None
    way.make(settings, label, drafter, out, seen)
    return out


def _choose_method(settings: TrainSettings) -> str:
    """Raises InputError for several methods."""
    labels = [label for label in settings.method if label != BASELINE]
    if len(labels) != 1:
        raise InputError(f"method={labels}: expected one, such as method=eagle3")
    return labels[0]


def _check_config(settings: TrainSettings, label: str) -> tuple[type[Any], TrainingMode]:
    check_node(settings.method[label], f"method.{label}")
    check_node(settings.suite, "suite")
    drafter: type[Any] = locate_class(settings.method[label])
    way = next((way for kind, way in MODES.items() if issubclass(drafter, kind)), None)
    if way is None:
        raise InputError(f"method={label}: has no weights of its own to train, and no skip set to search")
    _check_unused_settings(settings, label, way)
    way.check(settings, drafter)
    return drafter, way


def _check_unused_settings(settings: TrainSettings, label: str, way: TrainingMode) -> None:
    """Raises InputError for a setting of another way of learning that was given: it would mean nothing."""
    for name in (name for other in MODES.values() if other is not way for name in other.SETTINGS):
        if name in settings.changed:
            given = look_up(settings.plain, name)
            raise InputError(f"{name}={given}: {label} is {way.DONE}, with {', '.join(way.SETTINGS)} alone")


def _prepare_folder(settings: TrainSettings, label: str) -> Path:
    """`out`, with the config beside what will lie there. Raises InputError for a folder of another training."""
    out = Path(settings.out or f"results/train-{settings.target.name}-{label}").expanduser()
    there = out / CONFIG
    begun = out.exists() and any(path.name != CONFIG for path in out.iterdir())
    if begun and there.is_file() and translate_targets(yaml.safe_load(there.read_text(encoding="utf-8"))) != settings.recorded:
        raise InputError(f"out={out}: holds a training of another config ({CONFIG}); choose another folder")
    if begun and not there.is_file():
        raise InputError(f"out={out}: expected a training's folder, an empty one or a new one")
    out.mkdir(parents=True, exist_ok=True)
    there.write_text(yaml.safe_dump(settings.recorded, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return out
