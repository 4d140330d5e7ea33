"""A target without a YAML in conf/target, given as a folder or hub id: `target.path=FOLDER`."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.types import Override

from specbench import ROOT
from specbench.errors import InputError
from specbench.setup.settings import Node

CONF = ROOT / "conf/target"
LOCAL = "local"  # its choice in conf/target
NEEDS = ("draft", "checkpoint", "datastore")  # arguments of methods that name weights or texts


def imply_local(overrides: Sequence[str], parsed: Sequence[Override]) -> list[str]:
    """Return the overrides with target=local where a path is given and no target.

    Raises InputError if an experiment is given too: the path would run under the name and with the drafters of its target.
    """
    keys = {override.key_or_group for override in parsed}
    if "target.path" not in keys or "target" in keys:
        return list(overrides)
    if "experiment" in keys:
        raise InputError(
            f"target.path: an experiment has its own target; expected target={LOCAL}, or another target, with the path"
        )
    return [f"target={LOCAL}", *overrides]


def name_target(target: dict[str, Any]) -> None:
    """Name a target without a name after its folder, file or hub id."""
    if "name" in target and target["name"] is None:
        target["name"] = _find_name(str(target.get("path") or LOCAL))


def _find_name(path: str) -> str:
    """Return the last part of a path, in characters that a folder's name may have."""
    last = Path(path).expanduser().resolve().name if path.startswith((".", "~")) else path.rstrip("/").rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9._-]+", "_", last.removesuffix(".gguf")).strip("_.") or LOCAL


def build_yaml(path: str) -> str:
    """Return the YAML of conf/target for a folder or hub id."""
    target = yaml.safe_load((CONF / f"{LOCAL}.yaml").read_text(encoding="utf-8")) | {"path": path}
    name_target(target)
    return f"# docs/own_model.md explains every key.\n{yaml.safe_dump(target, sort_keys=False)}"


def leave_out(methods: dict[str, Node], asked: Sequence[str], target: Mapping[str, Any]) -> dict[str, str]:
    """Remove methods that lack weights and were not requested by name; return, by label, what each needs."""
    lacking = {label: need for label, node in methods.items() if label not in asked and (need := _find_need(node))}
    for label in lacking:
        del methods[label]
    return {label: _explain(label, need, target.get("path")) for label, need in lacking.items()}


def _explain(label: str, need: str, path: Any) -> str:
    """Return how to get what a method needs."""
    if need == "draft":
        return "a draft model: target.draft.path=FOLDER"
    if need == "datastore":
        return f"a datastore: specbench datastore build target.path={path} data=FILE, then target.datastore=FOLDER"
    return f"trained weights: specbench train target.path={path} (docs/own_model.md), then target.checkpoints"


def list_asked(parsed: Sequence[Override]) -> list[str]:
    """Return the methods that the command line names."""
    return [str(name) for name in _iter_asked(parsed)]


def _iter_asked(parsed: Sequence[Override]) -> Iterator[Any]:
    for override in parsed:
        if override.key_or_group != "method":
            continue
        if override.package:  # method@method.LABEL=NAME
            yield override.package.rpartition(".")[2]
            continue
        swept: Any = list(override.sweep_iterator()) if override.is_discrete_sweep() else [override.value()]
        for value in swept:
            yield from value if isinstance(value, list) else [value]


def _find_need(node: Mapping[str, Any]) -> str | None:
    """Return the argument of a method, or of a part of it, that names no weights."""
    for name, value in node.items():
        if name in NEEDS and (value is None or _is_empty_draft(value)):
            return name
        if isinstance(value, dict) and (need := _find_need(value)):
            return need
    return None


def _is_empty_draft(value: Any) -> bool:
    """Return whether it describes a draft model without a path or an architecture."""
    return isinstance(value, dict) and "path" in value and value["path"] is None and value.get("config") is None
