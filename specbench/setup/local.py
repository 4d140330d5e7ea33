"""A target that is no YAML of conf/target but a folder or hub id: `target.path=FOLDER`."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.types import Override

from specbench import ROOT
from specbench.setup.settings import Node

CONF = ROOT / "conf/target"
LOCAL = "local"  # its choice in conf/target
HOW = {  # to get what a method needs, by the argument that is null
    "draft": "a draft model: target.draft.path=FOLDER",
    "checkpoint": "trained weights: specbench train method=[{label}], then method.{label}.checkpoint=FOLDER",
    "datastore": "a datastore: specbench datastore build, then target.datastore=FOLDER",
}


def imply_local(overrides: Sequence[str], parsed: Sequence[Override]) -> list[str]:
    """Return the overrides with target=local where a path is given and no target."""
    keys = {override.key_or_group for override in parsed}
    implied = [f"target={LOCAL}"] if "target.path" in keys and not keys & {"target", "experiment"} else []
    return [*implied, *overrides]


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


def leave_out(methods: dict[str, Node], asked: Sequence[str]) -> dict[str, str]:
    """Take out methods that lack weights and that nobody asked for by name; return by label what each needs."""
    lacking = {label: need for label, node in methods.items() if label not in asked and (need := _find_need(node))}
    for label in lacking:
        del methods[label]
    return {label: HOW[need].format(label=label) for label, need in lacking.items()}


def list_asked(parsed: Sequence[Override]) -> list[str]:
    """Return the methods that the command line names."""
    return [str(name) for name in _iter_asked(parsed)]


def _iter_asked(parsed: Sequence[Override]) -> Iterator[Any]:
    for override in parsed:
        if override.key_or_group == "method" and not override.is_sweep_override():
            value = override.value()
            yield from value if isinstance(value, list) else [value]


def _find_need(node: Mapping[str, Any]) -> str | None:
    """Return the argument of a method, or of a part of it, that names no weights."""
    for name, value in node.items():
        if name in HOW and (value is None or _is_empty_draft(value)):
            return name
        if isinstance(value, dict) and (need := _find_need(value)):
            return need
    return None


def _is_empty_draft(value: Any) -> bool:
    """Whether it describes a draft model, and names neither a path nor an architecture."""
    return isinstance(value, dict) and "path" in value and value["path"] is None and value.get("config") is None
