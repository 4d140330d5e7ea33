"""Whatever one mutation makes of a stored file, it is read, or refused in one line with its place. Also labels and names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specbench.analysis.loaded_run import read_run
from specbench.analysis.summary import summarise
from specbench.compare.comparison import compare_runs
from specbench.compare.plan import plan_methods
from specbench.errors import InputError
from specbench.exchange.ids import read_ids
from specbench.exchange.spec_bench import export_answers, import_answers
from specbench.exchange.trackers import FORMATS
from specbench.paper.matching import collect_measured
from specbench.records.certificates import read_certificate
from specbench.records.names import make_file_name
from specbench.records.run_directory import RunDirectory
from specbench.replay.sources import read_run_answers
from specbench.report import tables
from specbench.report.alarms import find_alarms
from specbench.report.page import Section, render_page
from specbench.report.render import render_report
from specbench.report.terminal import build_headline_tables
from tests.fake_run import trial, write_run
from tests.mutations import dump, mutated, values
from tests.test_certify import certificate
from tests.test_contained import check_component
from tests.whole_run import RUN_JSON, WHOLE, copy_with, write_whole_run

Check = Callable[[st.DataObject, Path], None]
FEW = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
MANY = settings(FEW, max_examples=2000)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_whole_run(tmp_path_factory.mktemp("whole") / "run")


def read_everything(folder: Path, reference: Path, out: Path) -> None:
    """What the commands make of a run, without figures."""
    run = read_run(folder)
    summary = summarise(run)
    alarms = find_alarms(run, summary)
    [str(alarm) for alarm in alarms]
    render_page([Section(run, summary, alarms, [])])
    tables.format_markdown(summary)
    tables.format_latex(summary)
    build_headline_tables(summary, 100)
    collect_measured([run])
    attempts: list[Callable[[], object]] = [
        lambda: compare_runs(reference, folder, []),
        lambda: plan_methods(run, [one.method for one in run.trials], 0.05, 0.95),
        lambda: read_run_answers(folder),
        lambda: export_answers(run, out),
        *(partial(form, run, out) for form in FORMATS.values()),
    ]
    for attempt in attempts:
        try:
            attempt()
        except InputError as refused:
            assert "\n" not in str(refused)
    assert all(path.is_relative_to(out) for path in out.parent.iterdir() if path.name not in ("run", "reference", out.name))


FILES = ("trials.jsonl", "run.json", "config.yaml", "texts.jsonl", "prompts.jsonl")


def spoil(data: st.DataObject, stored: Path, folder: Path) -> Path:
    """A copy of the run with one mutation in one of its files."""
    file = data.draw(st.sampled_from(FILES))
    text = (stored / file).read_text()
    if file == "config.yaml":
        spoiled = yaml.safe_dump(data.draw(mutated(yaml.safe_load(text))), allow_unicode=False)
    elif file == "run.json":
        spoiled = dump(data.draw(mutated(json.loads(text))))
    else:
        lines = text.splitlines()
        place = data.draw(st.integers(0, len(lines) - 1))
        lines[place] = dump(data.draw(mutated(json.loads(lines[place]))))
        spoiled = "\n".join(lines) + "\n"
    return copy_with(stored, folder, file, spoiled.encode("utf-8", "surrogatepass"))


def check_spoiled(data: st.DataObject, stored: Path, tmp_path: Path) -> None:
    folder = spoil(data, stored, tmp_path / "run")
    try:
        read_everything(folder, stored, tmp_path / "out")
    except InputError as refused:
        assert str(refused).startswith((str(folder), f"{folder.name} ")) and "\n" not in str(refused)


@settings(FEW, max_examples=25)
@given(data=st.data())
def test_a_run_with_one_mutation_is_read_or_refused(stored: Path, tmp_path: Path, data: st.DataObject) -> None:
    check_spoiled(data, stored, tmp_path)


@pytest.mark.slow
@MANY
@given(data=st.data())
def test_many_runs_with_one_mutation(stored: Path, tmp_path: Path, data: st.DataObject) -> None:
    check_spoiled(data, stored, tmp_path)


@pytest.mark.slow
@settings(FEW, max_examples=150)
@given(data=st.data())
def test_the_report_of_a_run_with_one_mutation(stored: Path, tmp_path: Path, data: st.DataObject) -> None:
    folder = spoil(data, stored, tmp_path / "run")
    try:
        render_report([folder], tmp_path / "page")
    except InputError as refused:
        assert str(folder) in str(refused)


def check_certificate(data: st.DataObject, folder: Path) -> None:
    path = certificate().write(folder)
    path.write_text(dump(data.draw(mutated(json.loads(path.read_text())))))
    try:
        read = read_certificate(path)
        read.find_verdicts(WHOLE, RUN_JSON)
        [str(verdict.evidence) for verdict in read.greedy]
    except InputError as refused:
        assert str(refused).startswith(f"{path}: ")


ANSWER = {
    "question_id": 81,
    "category": "writing",
    "choices": [
        {"index": 0, "turns": ["a", "b"], "decoding_steps": [1, 2], "new_tokens": [2, 4], "wall_time": [0.1, 0.2]}
        | {"accept_lengths": [1, 2, 1]}
    ],
}
IDS = {"prompt_ids": [1, 2], "output_ids": [3, 4], "question_id": "a", "turn": 0, "task": "qa", "finish_reason": {"type": "stop"}}


def check_answers(data: st.DataObject, folder: Path) -> None:
    row = data.draw(mutated(ANSWER))
    baseline, method = folder / "baseline.jsonl", folder / "method.jsonl"
    baseline.write_text(dump(ANSWER) + "\n")
    method.write_text(dump(row) + "\n")
    shutil.rmtree(folder / "back", ignore_errors=True)
    try:
        import_answers([method], [baseline], None, RunDirectory(folder / "back"))
        summarise(read_run(folder / "back"))
    except InputError as refused:
        assert str(refused).startswith(str(method))
    (folder / "ids.jsonl").write_text(dump(data.draw(mutated(IDS))) + "\n")
    try:
        read_ids(folder / "ids.jsonl", 96)
    except InputError as refused:
        assert str(refused).startswith(str(folder / "ids.jsonl"))


MUTATED = pytest.mark.parametrize("check", [check_certificate, check_answers])


@MUTATED
@FEW
@given(data=st.data())
def test_a_file_with_one_mutation_is_read_or_refused(check: Check, tmp_path: Path, data: st.DataObject) -> None:
    check(data, tmp_path)


@pytest.mark.slow
@MUTATED
@MANY
@given(data=st.data())
def test_many_files_with_one_mutation(check: Check, tmp_path: Path, data: st.DataObject) -> None:
    check(data, tmp_path)


def check_label(label: str, folder: Path) -> None:
    """Any text as a label: a run of it is refused, or printed and exported inside its folder."""
    shutil.rmtree(folder / "run", ignore_errors=True)
    run = write_run(folder / "run", [trial("autoregressive", [1, 1], 1.0)])
    with (run.path / "trials.jsonl").open("ab") as file:
        file.write(json.dumps(trial("x", [2], 0.5).to_row() | {"method": label}).encode() + b"\n")
    try:
        read_everything(run.path, run.path, folder / "out")
    except InputError as refused:
        assert str(refused).startswith(f"{run.path / 'trials.jsonl'}:2: ")


@settings(FEW, max_examples=15)
@given(label=st.text() | values.filter(lambda value: isinstance(value, str)))
def test_any_label(tmp_path: Path, label: str) -> None:
    check_label(label, tmp_path)


@pytest.mark.slow
@MANY
@given(label=st.text(st.characters(codec=None)))
def test_many_labels(tmp_path: Path, label: str) -> None:
    check_label(label, tmp_path)


@FEW
@given(name=st.text(), other=st.text())
def test_any_name(tmp_path: Path, name: str, other: str) -> None:
    check_component(tmp_path, name)
    assert (make_file_name(name) == make_file_name(other)) == (name == other)


@pytest.mark.slow
@MANY
@given(name=st.text(st.characters(codec=None), max_size=400), other=st.text(max_size=400))
def test_many_names(tmp_path: Path, name: str, other: str) -> None:
    check_component(tmp_path, name)
    assert (make_file_name(name) == make_file_name(other)) == (name == other)
