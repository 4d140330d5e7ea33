"""`specbench train`: from a config to what a drafter needs for its target, and a card of how it was made."""

from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

from accelerate import PartialState
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from specbench.errors import InputError
from specbench.machine.devices import pick_device
from specbench.models.load import load_model
from specbench.records.trial import BASELINE
from specbench.setup.compose import CONF
from specbench.setup.instantiate import check, check_types
from specbench.setup.rules import LOADING, SHARED_RULES, Rules, check_rules, plain_config
from specbench.training import search, weights
from specbench.watch import Watch

CONFIG = "train.yaml"
WAITING = timedelta(days=7)  # at most, while the first process lets the target answer and the others wait


class Way(Protocol):
    """How something is learned: a module. SETTINGS of conf/train.yaml are for it alone, under RULES; DONE is a participle."""

    SETTINGS: tuple[str, ...]
    RULES: Rules
    DONE: str

    def check(self, config: DictConfig, drafter: type[Any]) -> None:
        """Raises InputError for settings that do not fit the drafter."""

    def make(self, config: DictConfig, label: str, drafter: type[Any], out: Path, watch: Watch) -> None:
        """Leaves in `out` what the drafter reads as its checkpoint, and goes on with what lies there."""


WAYS: dict[str, Way] = {"weights": weights, "skip set": search}  # by Drafter.learns


def train(config: DictConfig, watch: Watch) -> Path:
    """The folder of the checkpoint. Raises InputError.

    Of several processes (torchrun, accelerate launch) the first one writes and watches.
    """
    label, settings = _chosen(config)
    drafter = _checked(config, label, settings)
    processes = PartialState(cpu=pick_device(config.target.device).type == "cpu", timeout=WAITING)
    with processes.main_process_first():
        out = _folder(config, label)
    seen = watch if processes.is_main_process else lambda *_: None
    WAYS[drafter.learns].make(config, label, drafter, out, seen)
    return out


def _chosen(config: DictConfig) -> tuple[str, DictConfig]:
    """Raises InputError for several methods."""
    labels = [label for label in config.method if label != BASELINE]
    if len(labels) != 1:
        raise InputError(f"method={labels}: expected one, such as method=eagle3")
    return str(labels[0]), config.method[labels[0]]


def _checked(config: DictConfig, label: str, settings: DictConfig) -> type[Any]:
    check(settings, f"method.{label}")
    check(config.suite, "suite")
    check_types(load_model, {key: config.target[key] for key in LOADING}, "target")
    drafter = get_object(settings._target_)
    way = WAYS.get(getattr(drafter, "learns", None) or "")
    if way is None:
        raise InputError(f"method={label}: has no weights of its own to train, and no skip set to search")
    check_rules(config, SHARED_RULES | way.RULES)
    _check_meant(config, label, way)
    way.check(config, drafter)
    return drafter


def _check_meant(config: DictConfig, label: str, way: Way) -> None:
    """Raises InputError for a setting of another way of learning that was given: it would mean nothing."""
    defaults = OmegaConf.load(CONF / "train.yaml")
    for name in (name for other in WAYS.values() if other is not way for name in other.SETTINGS):
        value = OmegaConf.select(config, name)
        if value != OmegaConf.select(defaults, name):
            raise InputError(f"{name}={value}: {label} is {way.DONE}, with {', '.join(way.SETTINGS)} alone")


def _folder(config: DictConfig, label: str) -> Path:
    """`out`, with the config beside what will lie there. Raises InputError for a folder of another training."""
    out = Path(config.out or f"results/train-{config.target.name}-{label}").expanduser()
    said = OmegaConf.to_yaml(OmegaConf.create(plain_config(config)))
    there = out / CONFIG
    begun = out.exists() and any(path.name != CONFIG for path in out.iterdir())
    if begun and there.is_file() and there.read_text(encoding="utf-8") != said:
        raise InputError(f"out={out}: holds a training of another config ({CONFIG}); choose another folder")
    if begun and not there.is_file():
        raise InputError(f"out={out}: expected a training's folder, an empty one or a new one")
    out.mkdir(parents=True, exist_ok=True)
    there.write_text(said, encoding="utf-8")
    return out
