"""What records say of forwards, and who reads it: alarms, comparisons, certificates, resumed runs, tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from specbench.analysis.loaded_run import read_run
from specbench.analysis.summary import summarise
from specbench.compare.runs import check_comparable
from specbench.errors import InputError
from specbench.models.products import PRODUCTS
from specbench.records.certificates import _identify_target
from specbench.records.run_directory import RunDirectory
from specbench.report.alarms import find_alarms
from specbench.report.tables import describe_rows
from specbench.running.execute import _recall_choices
from tests.fake_run import trial, write_run

COMPILED = {"target": {"kind": "compiled", "why": "", "products": {"float32 8 to 8": 1}}}


def run(folder: Path, **about: Any) -> Path:
    turns = [(method, question) for method in ("autoregressive", "pld") for question in range(3)]
    write_run(folder, [trial(method, [1, 1], 1.0, question_id=question) for method, question in turns])
    path = folder / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | about))
    return folder


@pytest.mark.parametrize(
    "why, expected", [("it cannot be compiled: RuntimeError: no g++", False), ("the model is too small to gain", True)]
)
def test_a_report_says_what_was_to_be_compiled_and_is_not(why: str, expected: bool, tmp_path: Path) -> None:
    loaded = read_run(run(tmp_path / "run", forward={"target": {"kind": "eager", "why": why, "expected": expected}}))
    messages = [alarm.message for alarm in find_alarms(loaded, summarise(loaded))]
    assert (f"the target's forward runs eagerly: {why}" in messages) != expected


@pytest.mark.parametrize(
    "other, name",
    [
        ({}, "forward.target is eager, not compiled"),
        ({"forward": {"target": {"kind": "static"}}}, "forward.target is static, not compiled"),
        (
            {"forward": {"target": {**COMPILED["target"], "products": {"float32 8 to 8": 4}}}},
            "products.float32 8 to 8 is 4, not 1",
        ),
        ({"forward": {"target": {**COMPILED["target"], "sums": True}}}, "sums is True, not null"),
    ],
)
def test_runs_with_other_forwards_are_not_compared(other: dict[str, Any], name: str, tmp_path: Path) -> None:
    runs = [read_run(run(tmp_path / "a", forward=COMPILED)), read_run(run(tmp_path / "b", **other))]
    with pytest.raises(InputError, match=name):
        check_comparable(runs, [])


def test_runs_whose_drafters_ran_otherwise_are_not_compared(tmp_path: Path) -> None:
    runs = [read_run(run(tmp_path / kind, forward={**COMPILED, "pld": {"kind": kind}})) for kind in ("compiled", "eager")]
    with pytest.raises(InputError, match=r"forward\.pld is eager, not compiled"):
        check_comparable(runs, [])


def test_a_certificate_counts_for_its_kind_of_forward_alone() -> None:
    config = {"target": {"name": "mini"}}
    identities = [_identify_target(config, {"forward": forward}) for forward in ({}, COMPILED, {"target": {"kind": "eager"}})]
    assert identities[0] != identities[1] != identities[2]
    assert identities[1] == _identify_target(config, {"forward": json.loads(json.dumps(COMPILED))})


def test_the_baseline_stands_beside_the_memorys_speed(tmp_path: Path) -> None:
    loaded = read_run(run(tmp_path / "run", memory={"weight_bytes": 3_000, "read_bytes_per_second": 10_000.0}))
    assert "autoregressive: 2 tokens/s while decoding, 60% of the memory's speed." in describe_rows(summarise(loaded))
    bare = read_run(run(tmp_path / "bare"))
    assert not any("memory" in note for note in describe_rows(summarise(bare)))


class Listening:
    def __init__(self) -> None:
        self.known: Any = None

    def recall(self, forwards: Any) -> None:
        self.known = forwards


def test_a_resumed_run_recalls_what_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PRODUCTS, "first_rows", {"old": 1})
    engine: Any = Listening()
    _recall_choices(RunDirectory(run(tmp_path / "run", forward=COMPILED, products={"float32 8 to 8": None})), {"native": engine})
    assert engine.known == COMPILED and PRODUCTS.first_rows == {"old": 1, "float32 8 to 8": None}
    _recall_choices(RunDirectory(tmp_path / "new"), {"native": engine})
    assert "old" in PRODUCTS.first_rows, "models of an earlier run of the process may be packed by it"
