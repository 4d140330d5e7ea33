"""A small finished run for bundles: two methods of a stored one, with all ids and texts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from specbench import ROOT

STORED = ROOT / "results/reference/step-time"
METHODS = ("autoregressive", "pld")

Change = Callable[[dict[str, Any]], None]


def write_pair(folder: Path, changes: dict[str, Change] | None = None, method: str = "pld") -> Path:
    """Write the run. changes: by file; in a file of lines, of the first row of `method`."""
    folder.mkdir(parents=True)
    changes = changes or {}
    config = yaml.safe_load((STORED / "config.yaml").read_text(encoding="utf-8"))
    config["method"] = {name: config["method"][name] for name in METHODS}
    changes.get("config.yaml", _keep)(config)
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    provenance = json.loads((STORED / "run.json").read_text(encoding="utf-8"))
    changes.get("run.json", _keep)(provenance)
    (folder / "run.json").write_text(json.dumps(provenance), encoding="utf-8")
    for name in ("trials.jsonl", "texts.jsonl", "prompts.jsonl"):
        rows = [json.loads(line) for line in (STORED / name).read_text(encoding="utf-8").splitlines()]
        rows = [row for row in rows if name == "prompts.jsonl" or row["method"] in METHODS]
        changes.get(name, _keep)(next(row for row in rows if row.get("method") in (method, None)))
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def _keep(_: dict[str, Any]) -> None:
    """Change nothing."""
