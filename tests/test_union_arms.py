"""Whatever the types of config.yaml and run.json allow goes through report, compare, plan and resume."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, is_typeddict

import pytest
import yaml

from specbench.analysis.loaded_run import read_run
from specbench.analysis.summary import summarise
from specbench.bounds import Within
from specbench.compare.comparison import compare_runs
from specbench.compare.plan import check_pilot, plan_methods
from specbench.errors import InputError
from specbench.records.documents import Config, Provenance
from specbench.records.run_directory import RunDirectory
from specbench.records.typed import Sha256, list_hints
from specbench.report.alarms import find_alarms
from specbench.report.page import Section, render_page
from specbench.report.tree_sizes import tabulate_tree_sizes
from specbench.running.resume import SAME, check_same_run, open_run
from tests.fake_run import trial, write_run
from tests.test_certify import certificate
from tests.whole_run import RUN_JSON, WHOLE

SCALARS: dict[Any, list[Any]] = {str: ["2026-11-20"], int: [1], float: [0.5, 1], bool: [True, False], type(None): [None]}
ANY: tuple[Any, ...] = (None, True, 1, 0.5, "a", [], [[1]], {}, {"a": {"b": []}, "_target_": 5})


def iter_arms(hint: Any, within: Within | None = None) -> Iterator[Any]:
    """Yield values of every arm of a hint; lists of numbers are not empty, as the rounds of two engines must be as many."""
    if hint == Sha256:
        yield "0" * 64
        return
    origin, inside = get_origin(hint), get_args(hint)
    if origin is Annotated:
        yield from iter_arms(inside[0], inside[1] if isinstance(inside[1], Within) else None)
    elif origin in (Union, UnionType):
        for arm in inside:
            yield from iter_arms(arm, within)
    elif origin is Literal:
        yield from inside
    elif origin is list:
        yield from ([one] for one in iter_arms(inside[0]))
        yield from [[]] if is_typeddict(inside[0]) else []
    elif origin is dict:
        yield from ({"pld": one} for one in iter_arms(inside[1]))
        yield {}
    elif is_typeddict(hint):
        yield from build_documents(hint)
    elif within:
        yield from (hint(within.low), hint(within.high))
    else:
        yield from ANY if hint is Any else SCALARS[hint]


def build_documents(kind: Any) -> list[dict[str, Any]]:
    """Return documents that together hold every arm of every key."""
    arms = {key: list(iter_arms(hint)) for key, hint in list_hints(kind).items()}
    return [{key: values[at % len(values)] for key, values in arms.items()} for at in range(max(map(len, arms.values())))]


def write(folder: Path, config: Mapping[str, Any], about: Mapping[str, Any], seconds: float) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    turns = [("autoregressive", question, repeat) for question in range(2) for repeat in range(2)]
    turns += [("pld", question, repeat) for _, question, repeat in turns]
    trials = [trial(label, [1, 1], seconds, question_id=question, repeat=repeat) for label, question, repeat in turns]
    run = write_run(folder, trials)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "run.json").write_text(json.dumps(about))
    return run.path


def report(folder: Path) -> None:
    run = read_run(folder)
    summary = summarise(run)
    tabulate_tree_sizes(run, summary)
    render_page([Section(run, summary, find_alarms(run, summary), [])])


def plan(folder: Path) -> None:
    run = read_run(folder)
    plan_methods(run, ["autoregressive", "pld"], 0.05, 0.95)
    check_pilot(run, {"name": "mini", "shape": None, "dtype": "float32"}, {"batch": 1})


def resume(folder: Path, about: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """In the same place, as another place is refused first. now: what else the present run says of itself."""
    place = {key: about[key] for key in (*SAME, "device") if key in about}
    open_run(RunDirectory(folder), WHOLE, {**dict.fromkeys(SAME), **now, **place})


def check_readers(folder: Path, config: Mapping[str, Any], about: dict[str, Any]) -> None:
    replace(certificate(), config=WHOLE | {"target": config["target"]}, about=about).write(folder / "certificates" / "one")
    reference, run = write(folder / "reference", config, about, 0.5), write(folder / "run", config, about, 0.6)
    readers: list[Callable[[], object]] = [
        lambda: compare_runs(reference, run, []),
        lambda: plan(run),
        lambda: check_same_run(RunDirectory(run), WHOLE),
        lambda: resume(run, about, RUN_JSON),
        lambda: resume(run, about, {}),
    ]
    report(run)
    for reader in readers:
        try:
            reader()
        except InputError as refused:
            assert "\n" not in str(refused)


@pytest.mark.parametrize("at", range(len(build_documents(Config))))
def test_every_arm_of_a_config_can_be_read(tmp_path: Path, at: int) -> None:
    check_readers(tmp_path, build_documents(Config)[at], RUN_JSON)


@pytest.mark.parametrize("at", range(len(build_documents(Provenance))))
def test_every_arm_of_run_json_can_be_read(tmp_path: Path, at: int) -> None:
    check_readers(tmp_path, WHOLE, build_documents(Provenance)[at])
