"""Overrides to settings, by Hydra; what Hydra, OmegaConf or a YAML parser says of a mistake becomes one line."""

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from specbench import ROOT
from specbench.errors import InputError, find_closest, suggest_choices
from specbench.setup.rules import look_up
from specbench.setup.settings import CertifySettings, DatastoreSettings, RunSettings, S, TrainSettings, read_settings

CONF = ROOT / "conf"
GROUPS = ("target", "method", "task", "suite", "engine", "experiment")
LISTS = {"method": "_target_", "task": "name", "engine": "_target_"}  # groups of several choices: what each of them must have
RUN = RunSettings.root
ROOTS = {  # the mappings that a root config must have
    RUN: ("target", "method", "task", "suite", "engine", "sampling"),
    "train": ("target", "method", "task", "suite"),
    "datastore": ("target", "task", "suite"),
    "certify": ("target", "method", "task", "suite", "sampling"),
}
TARGET = (  # what every target's YAML must have
    *("name", "path", "revision", "format", "dtype", "device", "device_map"),
    *("trust_remote_code", "weights", "config", "shape", "draft"),
)


def compose_run(overrides: Sequence[str], config_dir: Path | None = None) -> RunSettings:
    """config_dir: a further folder of method/, task/, target/ YAMLs. Raises InputError."""
    return _compose(RunSettings, overrides, config_dir)


def compose_certify(overrides: Sequence[str], config_dir: Path | None = None) -> CertifySettings:
    """As `compose_run`, of conf/certify.yaml."""
    return _compose(CertifySettings, overrides, config_dir)


def compose_train(overrides: Sequence[str], config_dir: Path | None = None) -> TrainSettings:
    """As `compose_run`, of conf/train.yaml."""
    return _compose(TrainSettings, overrides, config_dir)


def compose_datastore(overrides: Sequence[str], config_dir: Path | None = None) -> DatastoreSettings:
    """As `compose_run`, of conf/datastore.yaml."""
    return _compose(DatastoreSettings, overrides, config_dir)


def _compose(kind: type[S], overrides: Sequence[str], config_dir: Path | None) -> S:
    with translate_errors(overrides, config_dir, kind.root):
        check_folder(config_dir)
        _check_overrides(overrides, config_dir)
        return _read_config(kind, _run_hydra(overrides, config_dir, kind.root))


def read_job(config: Any, out: str) -> RunSettings:
    """Of a job's config that Hydra itself has composed, as in a sweep. Raises InputError."""
    config.out = out
    with translate_errors():
        return _read_config(RunSettings, config)


def _read_config(kind: type[S], config: DictConfig) -> S:
    _check_structure(config, kind.root)
    plain: Any = OmegaConf.to_container(config, resolve=True)
    return read_settings(kind, plain, frozenset(_iter_changed(plain, kind.root)))


def _iter_changed(plain: Any, root: str) -> Iterator[str]:
    """Dotted names of the root config's own settings that are not as in its YAML."""
    own = OmegaConf.to_container(OmegaConf.load(CONF / f"{root}.yaml"))
    assert isinstance(own, dict)
    for name, default in _flatten(own):
        if look_up(plain, name) != default:
            yield name


def _flatten(plain: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in plain.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{above}{key}.")
        elif f"{above}{key}" != "defaults":
            yield f"{above}{key}", value


def add_import_path(folder: Path) -> None:
    """A --config-dir may hold the Python files that its YAMLs name."""
    if str(folder.resolve()) not in sys.path:
        sys.path.append(str(folder.resolve()))


def list_options(group: str, config_dir: Path | None = None) -> list[str]:
    """What may be chosen for a config group."""
    folders = [CONF, config_dir] if config_dir else [CONF]
    return sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})


@contextmanager
def translate_errors(overrides: Sequence[str] = (), config_dir: Path | None = None, root: str = RUN) -> Iterator[None]:
    """Whatever is wrong with a config comes out as an InputError of one line."""
    try:
        yield
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise InputError(_explain_error(error, overrides, config_dir, root)) from None


def _run_hydra(overrides: Sequence[str], config_dir: Path | None, root: str) -> DictConfig:
    extra = [f"hydra.searchpath=['file://{config_dir.resolve()}']"] if config_dir else []
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            return compose(root, overrides=[*overrides, *extra])
        except ValueError as error:  # Hydra's own, of a header or a value
            raise HydraException(str(error)) from None


def check_folder(config_dir: Path | None) -> None:
    """A YAML of a list group must put itself under its own name: without that, two of them would silently become one."""
    if config_dir is None:
        return
    if not config_dir.is_dir():
        raise InputError(f"--config-dir {config_dir}: no such folder")
    add_import_path(config_dir)
    for path in sorted(path for group in GROUPS for path in (config_dir / group).glob("*.yaml")):
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: cannot be read: {error}") from None
        if (CONF / path.parent.name / path.name).is_file():
            raise InputError(f"{path}: {path.parent.name}={path.stem} is specbench's own and would win; expected another name")
        package = re.search(r"^#\s*@package\s+(\S+)", text, re.MULTILINE)
        wanted, found = f"{path.parent.name}.{path.stem}", package[1] if package else None
        if path.parent.name in LISTS and found != wanted:
            raise InputError(f"{path}: expected the first line '# @package {wanted}', found {found or 'none'}")


def _check_overrides(overrides: Sequence[str], config_dir: Path | None) -> None:
    """Choices that are not there, among them what Hydra would take or refuse without saying of what: null, two targets."""
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        group = override.key_or_group
        if group not in GROUPS or override.is_delete() or override.is_sweep_override():
            continue
        value, there = override.value(), list_options(group, config_dir)
        for name in value if group in LISTS and isinstance(value, list) else [value]:
            if name not in there:
                given = "null" if name is None else name
                raise InputError(f"{group}={given}: no such {group}; there is {suggest_choices(str(given), there) or 'none'}")


def _check_structure(config: DictConfig, root: str) -> None:
    settings = OmegaConf.load(CONF / f"{root}.yaml")
    assert isinstance(settings, DictConfig)
    known = [*GROUPS, *(str(key) for key in settings if key != "defaults")]
    for key in map(str, config):
        if key not in known:
            raise InputError(f"{key}: no such setting; the nearest is {find_closest(key, known)}")
    for key in ROOTS[root]:
        if not isinstance(config.get(key), DictConfig) or not config[key]:
            raise InputError(
                f"{key} is empty or no mapping; expected {suggest_choices('', list_options(key)) or f'{key}.KEY=VALUE'}"
            )
    for key in map(str, config.get("sampling", {})):
        if key not in settings.sampling:
            raise InputError(f"sampling.{key}: no such setting; the nearest is {find_closest(key, list(settings.sampling))}")
    for key in TARGET:
        if key not in config.target:
            raise InputError(f"target: its YAML has no {key}; expected {', '.join(TARGET)}")
    for group in (group for group in LISTS if group in ROOTS[root]):
        needed = LISTS[group]
        for name in map(str, config[group]):
            child = config[group]._get_node(name)
            if not isinstance(child, DictConfig) or needed not in child:
                raise InputError(f"{group}.{name}: expected a mapping with {needed}")


def _explain_error(error: Exception, overrides: Sequence[str], config_dir: Path | None, root: str) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        more = "; more come with pip install -e '.[submitit]', [joblib] or [ray]" if group == "hydra/launcher" else ""
        return f"{group}={name}: no such {group}; there is {suggest_choices(name, error.options or []) or 'none'}{more}"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: not an override ({str(error).splitlines()[0]}); a value with special characters needs quotes"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"{error.problem_mark.name}:{error.problem_mark.line + 1}: not YAML: {error.problem}"
    if ambiguous := re.match(r"Ambiguous value for argument '([^=]+)=(.*?)'", text):
        key, value = ambiguous.groups()
        once = f"{key}=[{value}] for one run with all of them" if key in LISTS else "one value"
        return f"{key}={value}: expected {once}" + ", or -m for a run of each" * (root == RUN)
    if unknown := re.search(r"Could not override '([^']+)'", text):
        return _explain_unknown_key(unknown[1], overrides, config_dir, root)
    place = getattr(error, "full_key", None)
    return f"{place}: {text.split(' full_key:')[0]}" if place else text


def _explain_unknown_key(given: str, overrides: Sequence[str], config_dir: Path | None, root: str) -> str:
    """Names the nearest key among those of the chosen target, methods and so on."""
    keys = [override.split("=")[0] for override in overrides]
    choices = [override for override, key in zip(overrides, keys, strict=True) if key in GROUPS and key != given]
    whose = "" if root == RUN else f" of specbench {root}"
    known = _list_keys(_run_hydra(choices, config_dir, root))
    return f"{given}: no such setting{whose}; the nearest is {find_closest(given, known)}"


def _list_keys(config: DictConfig, prefix: str = "") -> list[str]:
    found = []
    for key in (str(key) for key in config if key != "_target_"):
        node = config._get_node(key)
        found.append(f"{prefix}{key}")
        if isinstance(node, DictConfig):
            found += _list_keys(node, f"{prefix}{key}.")
    return found
