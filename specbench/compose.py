"""Overrides to a resolved config, by Hydra; what Hydra says of a mistake becomes one line."""

import re
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from specbench import ROOT
from specbench.errors import InputError
from specbench.hints import nearest

CONF = ROOT / "conf"


def composed(overrides: list[str], config_dir: Path | None = None) -> DictConfig:
    """The config of a run. config_dir: a further folder of method/, task/, target/ YAMLs. Raises InputError."""
    if config_dir is not None and not config_dir.is_dir():
        raise InputError(f"--config-dir {config_dir}: no such folder")
    extra = [f"hydra.searchpath=[file://{config_dir.resolve()}]"] if config_dir else []
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("config", overrides=[*overrides, *extra])
            OmegaConf.resolve(config)
            return config
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(_one_line(error, overrides, config_dir)) from None
    except Exception as error:  # a YAML that does not parse reaches us as the parser's own exception
        raise InputError(" ".join(str(error).split())) from None


def options(group: str, config_dir: Path | None = None) -> list[str]:
    """What may be chosen for a config group."""
    folders = [CONF, config_dir] if config_dir else [CONF]
    return sorted(path.stem for folder in folders for path in (folder / group).glob("*.yaml"))


def _one_line(error: Exception, overrides: list[str], config_dir: Path | None) -> str:
    text = str(error)
    if missing := re.search(r"Could not (?:find|load) '([\w/]+)/([^']+)'", text):
        group, name = missing.groups()
        return f"{group}={name}: no such {group}; there is {nearest(name, options(group, config_dir))}"
    if unknown := re.search(r"Key '([^']+)' is not in struct|Could not override '([^']+)'", text):
        return _unknown_key(unknown, overrides)
    return " ".join(text.split())


def _unknown_key(unknown: re.Match[str], overrides: list[str]) -> str:
    key = unknown.group(1) or unknown.group(2)
    given = next((o.split("=")[0] for o in overrides if key in o.split("=")[0]), key)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        names = _keys(compose("config", overrides=[]))
    close = nearest(given, names).split(", ")[0]
    return f"{given}: no such setting; did you mean {close}?"


def _keys(config: DictConfig, prefix: str = "") -> list[str]:
    found = []
    for key in config:
        if config._get_node(key) is None or key == "hydra":
            continue
        found.append(f"{prefix}{key}")
        if isinstance(config._get_node(key), DictConfig):
            found += _keys(config._get_node(key), f"{prefix}{key}.")
    return found
