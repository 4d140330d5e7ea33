"""Compose overrides and the YAMLs of conf/ into settings, with Hydra. Every mistake becomes an InputError of one line."""

import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc

from specbench import ROOT
from specbench.errors import InputError, show_value, suggest_choices, suggest_nearest
from specbench.records.files import read_text
from specbench.records.nested import flatten, look_up
from specbench.setup import settings
from specbench.setup.launching import KINDS, check_hydra, check_plugin
from specbench.setup.local import imply_local, leave_out, list_asked, name_target
from specbench.setup.overrides import (
    LISTS,
    check_choices,
    check_target_keys,
    list_new_target_keys,
    parse_overrides,
    register_tasks,
    unknown_choice,
)
from specbench.setup.questions import check_tasks

CONF = ROOT / "conf"
GROUPS = ("target", "method", "task", "suite", "engine", "experiment")
FOLDERS = (*GROUPS, "tree", "hydra/launcher")  # of a --config-dir
RUN = settings.RunSettings.root
TARGET = [field.name for field in fields(settings.TargetSettings) if field.default is MISSING]  # what its YAML must have


def compose_run(overrides: Sequence[str], config_dir: Path | None = None) -> settings.RunSettings:
    """Compose the settings of `specbench run`. config_dir: a further folder like conf/. Raises InputError."""
    return _compose(settings.RunSettings, overrides, config_dir)


def compose_certify(overrides: Sequence[str], config_dir: Path | None = None) -> settings.CertifySettings:
    """Compose the settings of `specbench certify`, as `compose_run` does."""
    return _compose(settings.CertifySettings, overrides, config_dir)


def compose_train(overrides: Sequence[str], config_dir: Path | None = None) -> settings.TrainSettings:
    """Compose the settings of `specbench train`, as `compose_run` does."""
    return _compose(settings.TrainSettings, overrides, config_dir)


def compose_datastore(overrides: Sequence[str], config_dir: Path | None = None) -> settings.DatastoreSettings:
    """Compose the settings of `specbench datastore build`, as `compose_run` does."""
    return _compose(settings.DatastoreSettings, overrides, config_dir)


def _compose(kind: type[settings.S], overrides: Sequence[str], config_dir: Path | None) -> settings.S:
    with translate_errors(overrides, config_dir, kind.root):
        check_folder(config_dir)
        overrides = imply_local(overrides, parse_overrides(overrides))
        _check_overrides(overrides, config_dir, kind.root)
        config = _run_hydra(overrides, config_dir, kind.root)
        _check_hydra(config, overrides, config_dir, kind.root)
        given = parse_overrides(overrides)
        named = frozenset(override.key_or_group.partition(".")[0] for override in given)
        parsed = replace(_parse_config(kind, config, list_asked(given)), named=named)
    if parsed.question or parsed.category or any(task not in list_options("task", config_dir) for task in parsed.tasks):
        check_tasks(parsed)
    return parsed


def parse_job(config: DictConfig, out: str, asked: Sequence[str]) -> settings.RunSettings:
    """Return the settings of a sweep's job, whose config Hydra has composed. asked: see `_parse_config`. Raises InputError."""
    config.out = out
    with translate_errors():
        return _parse_config(settings.RunSettings, config, asked)


def _parse_config(kind: type[settings.S], config: DictConfig, asked: Sequence[str] = ()) -> settings.S:
    """Return the settings. asked: methods that are kept even if the target lacks what they need."""
    defaults: Any = OmegaConf.to_container(OmegaConf.load(CONF / f"{kind.root}.yaml"))
    del defaults["defaults"]
    _check_structure(kind, OmegaConf.to_container(config), defaults)
    plain = _resolve(config)
    name_target(plain["target"])
    left_out = leave_out(plain["method"], asked, plain["target"]) if isinstance(plain.get("method"), dict) else {}
    changed = frozenset(name for name, default in flatten(defaults) if look_up(plain, name) != default)
    return settings.parse_settings(kind, plain, changed, left_out)


def _resolve(config: DictConfig) -> Any:
    """Return a config as plain values. They are recorded and printed, so they must not come from the environment."""
    OmegaConf.register_new_resolver("oc.env", _refuse_environment, replace=True)
    try:
        return OmegaConf.to_container(config, resolve=True)
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)


def _refuse_environment(name: str, *_: object) -> None:
    raise InputError(f"${{oc.env:{name}}}: runs record their settings, so none is read from the environment")


def add_import_path(folder: Path) -> None:
    """Let Python import from a --config-dir: it may hold the files of the classes that its YAMLs name."""
    if (path := str(folder.resolve())) not in sys.path:
        sys.path.append(path)


def list_options(group: str, config_dir: Path | None = None) -> list[str]:
    """Return the choices of a config group, sorted."""
    folders = [CONF, config_dir] if config_dir else [CONF]
    return sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})


@contextmanager
def translate_errors(overrides: Sequence[str] = (), config_dir: Path | None = None, root: str = RUN) -> Iterator[None]:
    """Turn whatever Hydra, OmegaConf and the YAML parser raise inside into an InputError of one line."""
    try:
        yield
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise InputError(_explain_error(error, overrides, config_dir, root)) from None
    except RecursionError:
        raise InputError("the settings are nested too deeply") from None


def _run_hydra(overrides: Sequence[str], config_dir: Path | None, root: str) -> DictConfig:
    extra = [f"hydra.searchpath=['file://{config_dir.resolve()}']"] if config_dir else []
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            return compose(root, overrides=[*overrides, *extra], return_hydra_config=True)
        except (ValueError, TypeError, AssertionError, AttributeError) as error:  # Hydra raises them for some headers and values
            raise HydraException(str(error)) from None


def _check_hydra(config: DictConfig, overrides: Sequence[str], config_dir: Path | None, root: str) -> None:
    """Remove Hydra's own config, after checking what the command line or a folder may have changed. Only runs have sweeps."""
    given = [override for override in overrides if override.lstrip("+~").startswith("hydra")]
    if given and root != RUN:
        raise InputError(f"{given[0].partition('=')[0]}: no such setting of specbench {root}")
    if root == RUN and (given or config_dir is not None):
        default: Any = OmegaConf.to_container(_run_hydra([], None, root).hydra)
        chosen: Any = OmegaConf.to_container(_run_hydra(given, config_dir, root).hydra)
        plain: Any = OmegaConf.to_container(config.hydra)
        check_hydra(plain, default, chosen)
        for kind in KINDS:
            node = config.hydra[kind]
            check_plugin(OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else node, kind)
    with open_dict(config):
        config.pop("hydra")


def check_folder(config_dir: Path | None) -> None:
    """Raise InputError for a YAML that cannot be read, shares its name with one of conf/, or lacks its @package line.

    Without that line, two choices of a list group would silently become one.
    """
    if config_dir is None:
        return
    if not config_dir.is_dir():
        raise InputError(f"--config-dir {config_dir}: no such folder")
    add_import_path(config_dir)
    for path in _list_yamls(config_dir):
        text = read_text(path)
        if (CONF / path.parent.name / path.name).is_file():
            raise InputError(f"{path}: {path.parent.name}={path.stem} already exists in conf/; choose another name")
        package = re.search(r"^#\s*@package\s+(\S+)", text, re.MULTILINE)
        expected = f"{path.parent.name}.{path.stem}"
        given = package[1] if package else "none"
        if path.parent.name in LISTS and given != expected:
            raise InputError(f"{path}: expected the first line '# @package {expected}', found {given}")


def _list_yamls(config_dir: Path) -> list[Path]:
    return sorted(path for group in FOLDERS for path in (config_dir / group).glob("*.yaml"))


def check_syntax(config_dir: Path) -> None:
    """Raise InputError for a YAML of a folder that cannot be parsed, even if nothing selects it."""
    for path in _list_yamls(config_dir):
        with translate_errors(), path.open("rb") as file:
            yaml.safe_load(file)


def _check_overrides(overrides: Sequence[str], config_dir: Path | None, root: str) -> None:
    """Raise InputError for what Hydra would accept or report without a name: deletions, unknown choices, keys that nothing
    reads.
    """
    parsed = parse_overrides(overrides)
    options = {group: list_options(group, config_dir) for group in GROUPS}
    check_choices(parsed, options)
    register_tasks(parsed, options["task"])
    if new := list(list_new_target_keys(parsed)):
        rest = [str(one.input_line) for one in parsed if not one.is_add() and not one.key_or_group.startswith("target.")]
        plain: Any = OmegaConf.to_container(_run_hydra(rest, config_dir, root))
        check_target_keys(new, plain)


def _check_structure(kind: type[settings.Settings], plain: Any, defaults: Mapping[str, Any]) -> None:
    """Raise InputError for an unknown setting and for a missing mapping or key. defaults: the root config's YAML."""
    _check_known(plain, [*GROUPS, *defaults])
    needed = {"task", *(field.name for field in fields(kind))}
    for key in (key for key in (*GROUPS, "sampling", "search") if key in needed):
        if not isinstance(plain.get(key), dict) or not plain[key]:
            expected = suggest_choices("", list_options(key)) or f"{key}.KEY=VALUE"
            raise InputError(f"{key} is empty or not a mapping; expected {expected}")
    for section in ("sampling", "search"):
        _check_known(plain.get(section, {}), list(defaults.get(section, {})), f"{section}.")
    for key in TARGET:
        if key not in plain["target"]:
            raise InputError(f"target: its YAML has no {key}; expected {', '.join(TARGET)}")
    for group in (group for group in LISTS if group in needed):
        for name, node in plain[group].items():
            if not isinstance(node, dict) or LISTS[group] not in node:
                raise InputError(f"{group}.{name}: expected a mapping with {LISTS[group]}")
    for name, task in plain["task"].items():
        _check_known(task, ["name"], f"task.{name}.")
        if not isinstance(task["name"], str):
            raise InputError(f"task.{name}.name={show_value(task['name'])}: expected text")


def _check_known(given: Iterable[object], known: Sequence[str], prefix: str = "") -> None:
    for key in map(str, given):
        if key not in known:
            raise InputError(f"{prefix}{key}: no such setting{suggest_nearest(key, known)}")


def _explain_error(error: Exception, overrides: Sequence[str], config_dir: Path | None, root: str) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        extras = "; pip install -e '.[submitit]', [joblib] or [ray] adds more"
        return str(unknown_choice(group, name, error.options or [], extras if group == "hydra/launcher" else ""))
    if isinstance(error, OverrideParseException):
        reason = str(error).splitlines()[0]
        return f"{show_value(error.override)}: not an override ({reason}); a value with special characters needs quotes"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"{error.problem_mark.name}:{error.problem_mark.line + 1}: invalid YAML: {error.problem}"
    if isinstance(error, yaml.reader.ReaderError):
        return f"{error.name}: invalid YAML: {error.reason} at character {error.position}"
    if ambiguous := re.match(r"Ambiguous value for argument '([^=]+)=(.*?)'", text):
        key, value = ambiguous.groups()
        several = key in (*LISTS, "question", "category")
        expected = f"{key}=[{value}] for one run with all of them" if several else "one value"
        return f"{key}={value}: expected {expected}" + ", or -m for one run each" * (root == RUN)
    if missing := re.match(r"You must specify '(\w+)'", text):
        return f"{missing[1]}: expected one, such as {missing[1]}=NAME; `specbench list` shows them"
    if unknown := re.search(r"Could not override '([^']+)'", text):
        return _explain_unknown_key(unknown[1], overrides, config_dir, root)
    place = getattr(error, "full_key", None)
    reason = re.sub(r"^\w+ raised while resolving interpolation: ", "", text.split(" full_key:")[0])
    return f"{place}: {reason}" if place else reason


def _explain_unknown_key(given: str, overrides: Sequence[str], config_dir: Path | None, root: str) -> str:
    """Name the nearest key, among those of the chosen target, methods and so on."""
    keys = [override.split("=")[0] for override in overrides]
    choices = [override for override, key in zip(overrides, keys, strict=True) if key in GROUPS and key != given]
    command = "" if root == RUN else f" of specbench {root}"
    plain: Any = OmegaConf.to_container(_run_hydra(choices, config_dir, root))
    own = given.startswith("hydra")
    names = [name.split(".") for name, _ in flatten(plain) if name.startswith("hydra.") == own]
    known = [prefix for name in names for prefix in accumulate(name, "{}.{}".format) if not prefix.endswith("_target_")]
    section, _, rest = given.partition(".")
    label = rest.partition(".")[0]
    if section in LISTS and label in list_options(section, config_dir) and f"{section}.{label}" not in known:
        return f"{given}: {section} {label} is not among the chosen ones; expected {section}=[…,{label}]"
    if given in known:
        return f"{given}: cannot be set to a mapping with other keys"
    return f"{given}: no such setting{command}{suggest_nearest(given, known)}"
