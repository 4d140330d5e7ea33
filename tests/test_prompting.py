"""Thinking on and off, natural stop and fixed length: runs of one sweep that a report tells apart."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from specbench.analysis.prompting import DEFAULT, NATURAL, describe_ends, describe_template
from specbench.analysis.summary import write_summary
from specbench.records.run_directory import RunDirectory
from specbench.report.tables import build_grid, describe_rows, format_interval, format_markdown
from specbench.running.sweep import expand_sweep
from tests.conftest import Cli, Tiny
from tests.fake_run import CONFIG, made_up_trials, write_run

THINKING = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if think %}<t>{% else %}<t></t>{% endif %}"
SHORT = ["task=[qa]", "limit=1", "repeats=1", "method=[pld]", "check_baseline=false", "threads=1", "suite.per_task=2"]


@pytest.mark.parametrize(
    ("sampling", "words"),
    [
        ({}, NATURAL),
        ({"ignore_eos": None, "min_new_tokens": None, "stop": None}, NATURAL),
        ({"ignore_eos": False}, NATURAL),
        ({"ignore_eos": True}, "at a fixed length"),
        ({"ignore_eos": True, "stop": ["\n\n"]}, r'not at a stop token, at "\n\n"'),
        ({"min_new_tokens": 32}, "after 32 tokens at the earliest"),
        ({"min_new_tokens": 32, "stop": ["é", "Q:"]}, 'after 32 tokens at the earliest, at "é" or "Q:"'),
    ],
)
def test_where_answers_end_in_words(sampling: dict[str, Any], words: str) -> None:
    assert describe_ends(sampling) == words


def test_a_chat_template_in_words() -> None:
    assert describe_template({"name": "x", "template": None}) == describe_template({}) == DEFAULT
    assert describe_template({"template": {"enable_thinking": False}}) == "enable_thinking=false"
    assert describe_template({"template": {"a": 1}, "system": "Be short."}) == 'a=1, system="Be short."'
    assert len(describe_template({"system": "long " * 99})) == 60


def test_tables_tell_the_runs_apart(tmp_path: Path) -> None:
    summaries = []
    for name, fixed, template in (("a", None, None), ("b", True, {"think": True})):
        run = write_run(tmp_path / name, made_up_trials({"pld": 0.5}, ["qa"], 3))
        base: Any = CONFIG["target"]
        target = {**base, "shape": None, "template": template}
        run.write_config({**CONFIG, "target": target, "sampling": {"temperature": 0, "ignore_eos": fixed}})
        summaries.append(write_summary(run.path))
    both = pd.concat(summaries, ignore_index=True)
    labels = [row[0] for row in build_grid(both, format_interval).rows]
    assert labels == ["a"] * 2 + ["b (answers end at a fixed length; chat template think=true)"] * 2
    assert describe_rows(summaries[1])[-2:] == ["Answers end at a fixed length.", "Chat template: think=true."]
    assert "Answers end at a fixed length." in format_markdown(summaries[1])
    assert not any("Answers" in note or "template" in note for note in describe_rows(summaries[0]))


def test_a_sweep_in_a_yaml_may_have_nulls_and_mappings() -> None:
    swept = {"sampling": {"ignore_eos": [None, True]}, "target.template": [{"enable_thinking": True}, {"enable_thinking": False}]}
    assert expand_sweep(swept, []) == [
        "sampling.ignore_eos=null,true",
        "target.template={enable_thinking: true},{enable_thinking: false}",
    ]


@pytest.mark.full
def test_thinking_and_length_run_as_sweeps(cli: Cli, tiny: Tiny, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny.target, tmp_path / "thinker"))
    (folder / "chat_template.jinja").write_text(THINKING, encoding="utf-8")
    target = [f"target.path={folder}", "target.dtype=float32", "sampling.max_new_tokens=8"]
    thinking = "target.template={think: true},{think: false}"
    status, out, err = cli("run", "-m", *target, *SHORT, thinking, "out=thinking")
    assert status == 0, err
    runs = {path.parent.name: RunDirectory(path.parent) for path in sorted(Path("thinking").glob("*/config.yaml"))}
    assert list(runs) == ["target.template={think:False}", "target.template={think:True}"]
    chats = [run.read_provenance()["chat"] for run in runs.values()]
    assert [chat["arguments"] for chat in chats] == [{"think": False}, {"think": True}]
    assert len({prompt.sha256 for run in runs.values() for prompt in run.read_prompts()}) == 2
    assert "Chat template: think=false." in out and "Chat template: think=true." in out

    assert cli("run", "-m", *target, *SHORT, "sampling.ignore_eos=null,true", "out=length").status == 0
    trials = [trial for path in Path("length").glob("*True/trials.jsonl") for trial in RunDirectory(path.parent).read_trials()]
    assert {(trial.new_tokens, trial.finish_reason) for trial in trials} == {(8, "length")}
