"""Every import runs downwards: the floors of docs/design.md, read from the syntax tree. Imports inside functions count."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from specbench import ROOT

FLOORS = (  # from the ground up; rooms of one floor do not import each other
    ("errors", "watch", "bounds"),
    ("records", "machine"),
    ("analysis",),
    ("decoding",),
    ("models",),
    ("drafters", "servers"),
    ("engine", "exchange"),
    ("setup",),
    ("report",),
    ("paper", "bundles", "leaderboard"),
    ("datastore", "training", "diagnose"),
    ("running",),
    ("certify", "replay", "compare"),
    ("cli", "api"),
    ("zoo", "__main__"),
)
PURE = {  # rooms without a model and without torch, and all that they may import
    "records": ("errors", "bounds"),
    "analysis": ("errors", "records"),
    "report": ("errors", "records", "analysis"),
    "paper": ("errors", "records", "analysis", "report"),
    "bundles": ("errors", "records", "analysis", "report"),
    "leaderboard": ("errors", "records", "analysis", "report"),
}
METHODS_MAY = ("errors", "bounds", "decoding", "models", "drafters", "datastore")
TASKS_MAY = ("errors", "bounds")
LOOSE = 4  # modules outside any room
MODELS = ("torch", "transformers")
CONFIG_OBJECTS = ("DictConfig", "ListConfig", "OmegaConf")


class Import(NamedTuple):
    """At `place` (file:line), a module of `importer` imports from `imported`; both are rooms or top-level packages."""

    place: str
    importer: str
    imported: str


def floor_of(room: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def room_of(module: str) -> str:
    """specbench.decoding.tree -> decoding; methods.pld -> methods; the package itself is below every floor."""
    package, _, rest = module.partition(".")
    return rest.partition(".")[0] if package == "specbench" else package


def own_files(root: Path) -> list[Path]:
    return sorted(file for package in ("specbench", "methods", "tasks") for file in (root / package).rglob("*.py"))


def imports_of(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield all imports but those that only a type checker sees."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        elif not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            yield from imports_of(node)


def imported_modules(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif node.module in ("specbench", "methods", "tasks"):
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    else:
        yield node.module or ""


def read_imports(root: Path) -> list[Import]:
    imports = []
    for file in own_files(root):
        module = ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        for node in imports_of(ast.parse(file.read_text(encoding="utf-8"))):
            for name in imported_modules(node):
                if name.partition(".")[0] in ("specbench", "methods", "tasks", *MODELS):
                    place = f"{file.relative_to(root)}:{node.lineno}"
                    imports.append(Import(place, room_of(module), room_of(name)))
    return imports


def is_wrong(item: Import) -> bool:
    if item.imported == item.importer or item.imported in ("ROOT", "__version__"):
        return False
    if item.importer in PURE:
        return item.imported not in PURE[item.importer]
    if item.imported in MODELS:
        return False
    if item.importer == "methods":
        return item.imported not in METHODS_MAY
    if item.importer == "tasks":
        return item.imported not in TASKS_MAY
    if item.imported in ("methods", "tasks"):
        return item.imported == "methods" or item.importer == "errors"
    return floor_of(item.imported) >= floor_of(item.importer)


def wrong_imports(root: Path) -> list[str]:
    return [f"{item.place}: {item.importer} imports {item.imported}" for item in read_imports(root) if is_wrong(item)]


def config_readers(root: Path) -> list[str]:
    """Return the modules outside setup that use a config object."""
    return [
        str(file.relative_to(root))
        for file in own_files(root)
        if file.parent.name != "setup" and any(name in file.read_text(encoding="utf-8") for name in CONFIG_OBJECTS)
    ]


def test_every_import_runs_downwards() -> None:
    assert wrong_imports(ROOT) == []


def test_every_room_has_a_floor() -> None:
    rooms = {file.parent.name for file in (ROOT / "specbench").glob("*/*.py")}
    assert rooms == {room for floor in FLOORS for room in floor} - {"errors", "watch", "bounds", "__main__"}


def test_the_design_page_shows_these_floors() -> None:
    page = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \|", page, re.MULTILINE)
    shown = {int(number): set(re.findall(r"`(\w+)`", rooms)) for number, rooms in rows}
    assert shown == {number: set(rooms) - {"__main__"} for number, rooms in enumerate(FLOORS, start=1)}


def test_few_modules_are_outside_any_room() -> None:
    loose = [file.name for file in (ROOT / "specbench").glob("*.py") if file.name != "__init__.py"]
    assert len(loose) <= LOOSE, loose


def test_setup_alone_reads_config() -> None:
    assert config_readers(ROOT) == []


PLANTED = [
    ("specbench/decoding/tree.py", "from specbench.report.render import render", "decoding imports report"),
    ("specbench/decoding/tree.py", "def late():\n    import specbench.cli.main", "decoding imports cli"),
    ("specbench/models/load.py", "from specbench.drafters import network", "models imports drafters"),
    ("specbench/engine/native.py", "from methods.pld import PromptLookup", "engine imports methods"),
    ("specbench/engine/native.py", "from specbench import setup", "engine imports setup"),
    ("specbench/report/page.py", "from specbench.decoding.tree import DraftTree", "report imports decoding"),
    ("specbench/report/page.py", "from tasks.question import Question", "report imports tasks"),
    ("specbench/analysis/metrics.py", "def late():\n    from torch import Tensor", "analysis imports torch"),
    ("specbench/records/files.py", "from specbench.machine.locks import lock_run", "records imports machine"),
    ("methods/pld.py", "from specbench.running.execute import execute", "methods imports running"),
    ("tasks/suite.py", "from specbench.records.trial import Trial", "tasks imports records"),
]


@pytest.mark.parametrize(("file", "line", "message"), PLANTED)
def test_a_planted_import_is_named(tmp_path: Path, file: str, line: str, message: str) -> None:
    planted = tmp_path / file
    planted.parent.mkdir(parents=True)
    planted.write_text(f"import json\n{line}\n")
    assert [line.partition(": ")[2] for line in wrong_imports(tmp_path)] == [message]


def test_what_only_a_type_checker_sees_does_not_count(tmp_path: Path) -> None:
    planted = tmp_path / "specbench" / "records" / "files.py"
    planted.parent.mkdir(parents=True)
    planted.write_text("if TYPE_CHECKING:\n    from specbench.cli.main import main\n")
    assert wrong_imports(tmp_path) == []


def test_a_planted_config_object_is_named(tmp_path: Path) -> None:
    for room in ("setup", "running"):
        planted = tmp_path / "specbench" / room / "mine.py"
        planted.parent.mkdir(parents=True)
        planted.write_text("from omegaconf import DictConfig\n")
    assert config_readers(tmp_path) == ["specbench/running/mine.py"]
