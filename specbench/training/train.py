"""`specbench train`: from settings to a drafter's checkpoint for its target, and a card of how it was made."""

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
from specbench.records.names import make_file_name
from specbench.records.nested import look_up
from specbench.records.trial import BASELINE
from specbench.setup.instantiate import check_node, locate_class
from specbench.setup.settings import TrainSettings
from specbench.training import search, weights
from specbench.watch import Watch
from tasks.suite import Suite

CONFIG = "train.yaml"
WAITING = timedelta(days=7)  # longest wait of the other processes while the first one generates answers


class TrainingMode(Protocol):
    """A way of training, implemented by a module.

    SETTINGS: its own settings of conf/train.yaml; DONE: what is done to a method, for messages.
    """

    SETTINGS: tuple[str, ...]
    DONE: str

    def check(self, settings: TrainSettings, drafter: type[Any]) -> None:
        """Raise InputError for settings that do not fit the drafter."""

    def make(self, settings: TrainSettings, label: str, drafter: type[Any], out: Path, watch: Watch) -> None:
        """Write the drafter's checkpoint into `out`; resume from what `out` holds."""

    def describe_kept(self, settings: TrainSettings, out: Path) -> str:
        """Return what an unfinished training has saved in `out`, in words."""


MODES: dict[type[Drafter], TrainingMode] = {NetworkDrafter: weights, SkippingDrafter: search}


def train(settings: TrainSettings, watch: Watch) -> Path:
    """Return the folder of the checkpoint. Raises InputError, and KeyboardInterrupt with the folder and what is saved in it.

    Of several processes (torchrun, accelerate launch) the first one writes and reports progress.
    """
    label = _choose_method(settings)
    drafter, mode = _check_config(settings, label)
    processes = PartialState(cpu=pick_device(settings.target.device).type == "cpu", timeout=WAITING)
    with processes.main_process_first():
        out = _prepare_folder(settings, label)
    try:
        mode.make(settings, label, drafter, out, watch if processes.is_main_process else lambda *_: None)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(out, f"kept: {mode.describe_kept(settings, out) or 'nothing yet'}") from None
    return out


def _choose_method(settings: TrainSettings) -> str:
    """Return the method to train. Raises InputError unless there is exactly one."""
    labels = [label for label in settings.method if label != BASELINE]
    if len(labels) != 1:
        raise InputError(f"method={labels}: expected one, such as method=eagle3")
    return labels[0]


def _check_config(settings: TrainSettings, label: str) -> tuple[type[Any], TrainingMode]:
    check_node(settings.method[label], f"method.{label}", Drafter)
    check_node(settings.suite, "suite", Suite)
    drafter: type[Any] = locate_class(settings.method[label])
    mode = next((mode for kind, mode in MODES.items() if issubclass(drafter, kind)), None)
    if mode is None:
        raise InputError(f"method={label}: has neither weights to train nor a skip set to search for")
    _check_unused_settings(settings, label, mode)
    mode.check(settings, drafter)
    return drafter, mode


def _check_unused_settings(settings: TrainSettings, label: str, mode: TrainingMode) -> None:
    """Raise InputError if a setting of another mode was given: it would have no effect."""
    for name in (name for other in MODES.values() if other is not mode for name in other.SETTINGS):
        if name in settings.changed:
            value = look_up(settings.plain, name)
            raise InputError(
                f"{name}={value}: has no effect, since {label} is {mode.DONE}; expected only {', '.join(mode.SETTINGS)}"
            )


def _prepare_folder(settings: TrainSettings, label: str) -> Path:
    """Create or reopen `out` and write the config into it. Raises InputError for a folder of another training."""
    out = Path(settings.out or f"results/{make_file_name(f'train-{settings.target.name}-{label}')}").expanduser()
    config = out / CONFIG
    begun = out.exists() and any(path.name != CONFIG for path in out.iterdir())
    if begun and not config.is_file():
        raise InputError(f"out={out}: expected the folder of a training, an empty folder or a new one")
    if begun and translate_targets(yaml.safe_load(config.read_text(encoding="utf-8"))) != settings.recorded:
        raise InputError(f"out={out}: holds a training of another config ({CONFIG}); choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    config.write_text(yaml.safe_dump(settings.recorded, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return out
