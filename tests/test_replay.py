"""A replay of recorded answers takes the same steps as the live run, without a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from specbench.decoding.loop import generate
from specbench.decoding.sampling import Sampling
from specbench.decoding.stopping import StopStrings
from specbench.errors import InputError
from specbench.exchange.ids import RecordedAnswer, read_ids
from specbench.records.run_directory import RunDirectory
from specbench.replay.recorded_target import replay_answers
from specbench.replay.run import MethodReplay, build_replay_table
from tests import fake_run
from tests.conftest import Cli, Refuse, Tiny
from tests.methods_under_test import drafter_of, target_of
from tests.tiny import VOCABULARY, prompts

pytestmark = pytest.mark.full

LIVE = (
    "pld",
    "pld_spec_bench",
    "rest",
    "rest_spec_bench",
    "sam_decoding",
    "sam_decoding_static",
    "suffix",
    "suffix_tree",
    "oracle",
    "synthetic",
)
STEPS = ("output_ids", "finish_reason", "drafted", "nodes", "depth", "accepted", "committed")


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("label", LIVE)
def test_a_replay_takes_the_steps_of_the_live_run(label: str, temperature: float) -> None:
    target, live = target_of("llama"), drafter_of(label, "llama")
    live.bind(target)
    answers, outs = [], []
    for seed, prompt in enumerate(prompts(24, seed=3)):
        sampling = Sampling(temperature, max_new_tokens=40, stop_token_ids=(1, 7), seed=seed)
        (out,) = generate(target, live, [prompt], sampling)
        outs.append(out)
        stops = (out.output_ids[-1],) if out.finish_reason == "eos" else ()
        answers.append(RecordedAnswer(prompt.tolist(), out.output_ids, 40, stops))
    again = replay_answers(label, drafter_of(label, "llama"), answers, VOCABULARY)
    assert {out.finish_reason for out in outs} == {"eos", "length"}
    for out, other in zip(outs, again, strict=True):
        for name in STEPS:
            assert getattr(out, name) == getattr(other, name), name
    assert any(sum(out.accepted) for out in again) or label.startswith(("rest", "sam_decoding_static"))


@pytest.mark.parametrize("label", LIVE)
def test_a_replay_ends_at_the_stop_string(label: str) -> None:
    """Drafts go on to the limit there, as the live run's do."""
    target, live = target_of("llama"), drafter_of(label, "llama")
    live.bind(target)
    ending = StopStrings(("xx", "xyx"), lambda ids: "".join("xyz"[token % 3] for token in ids))
    answers, outs = [], []
    for prompt in prompts(16, seed=3):
        outs += generate(target, live, [prompt], Sampling(max_new_tokens=40, ending=ending))
        ended = outs[-1].finish_reason == "stop_string"
        answers.append(RecordedAnswer(prompt.tolist(), outs[-1].output_ids, 40, ended=ended))
    again = replay_answers(label, drafter_of(label, "llama"), answers, VOCABULARY)
    assert sum(answer.ended for answer in answers) > 4
    for out, other in zip(outs, again, strict=True):
        for name in ("output_ids", "drafted", "nodes", "depth", "accepted", "committed"):
            assert getattr(out, name) == getattr(other, name), name


@pytest.mark.parametrize("label", ["medusa", "eagle2", "token_recycling", "lookahead", "self_speculative"])
def test_a_method_that_reads_the_target_is_refused(label: str) -> None:
    answers = [RecordedAnswer([5, 6, 7, 5, 6], [7, 8, 9, 10, 11, 12], 6)]
    with pytest.raises(InputError, match=f"method {label} cannot be replayed: it reads what the target computes"):
        replay_answers(label, drafter_of(label, "llama"), answers)


@pytest.mark.parametrize(
    ("label", "why"),
    [
        ("medusa", "it reads what the target computes"),
        ("sam_eagle2", "it reads what the target computes"),
        ("sps", "it drafts with its own model"),
    ],
)
def test_a_method_that_needs_a_model_is_refused_by_name(label: str, why: str, refuse: Refuse, tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", {"prompt_ids": [5, 6, 7, 5, 6], "output_ids": [7, 8, 9, 10, 11, 12]})
    message = refuse("replay", "--of", "a.jsonl", f"method=[{label}]", "out=other")
    assert message.startswith(f"method {label} cannot be replayed: {why}")


def test_a_replay_does_not_end_answers_otherwise(refuse: Refuse, tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", {"prompt_ids": [5, 6, 7, 5, 6], "output_ids": [7, 8, 9, 10, 11, 12]})
    message = refuse("replay", "--of", "a.jsonl", "method=[pld]", "sampling.ignore_eos=true", "out=other")
    assert message == "sampling.ignore_eos=True: has no effect on where a recorded answer ends; expected null"


def write(path: Path, *rows: dict[str, Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def logged(run: RunDirectory) -> list[dict[str, Any]]:
    """Return what an engine must at least log of autoregressive decoding's turns."""
    ids = {prompt.sha256: prompt.prompt_ids for prompt in run.read_prompts()}
    names = ("question_id", "turn", "task")
    return [
        {"prompt_ids": ids[trial.prompt_sha256], "output_ids": trial.output_ids} | {name: getattr(trial, name) for name in names}
        for trial in run.read_trials()
        if trial.method == "autoregressive"
    ]


def assert_same_steps(live: RunDirectory, again: RunDirectory, label: str) -> None:
    mine, theirs = ({trial.key: trial for trial in run.read_trials() if trial.method == label} for run in (live, again))
    assert mine.keys() == theirs.keys() and mine
    for key, trial in mine.items():
        for name in (*STEPS, "prompt_sha256"):
            assert getattr(trial, name) == getattr(theirs[key], name), (key, name)


def test_a_run_its_ids_and_its_exported_texts_take_the_same_steps(cli: Cli, tiny: Tiny, tmp_path: Path) -> None:
    run = ["task=[mt_bench,summarization]", "method=[pld]", "repeats=1", "sampling.max_new_tokens=24", "out=run"]
    assert cli("run", *tiny.overrides(*run)).status == 0
    live = RunDirectory(tmp_path / "run")
    status, out, err = cli("replay", "--of", "run", "method=[pld,sam_decoding]", "out=again")
    assert status == 0, err
    assert "pld" in out and "6 of 6 turns" in out, out
    trials = RunDirectory(tmp_path / "again").read_trials()
    assert {trial.kind for trial in trials} == {"replayed"} and all(trial.decode_s is None for trial in trials)

    write(tmp_path / "ids.jsonl", *logged(live))
    assert cli("replay", "--of", "ids.jsonl", "method=[pld]", "sampling.max_new_tokens=24", "out=ids").status == 0
    assert_same_steps(live, RunDirectory(tmp_path / "ids"), "pld")
    assert cli("report", "ids").status == 0

    assert cli("export", "spec_bench", "run").status == 0
    of = ["--of", "exports/model_answer_run_1/autoregressive.jsonl", "method=[pld]", "sampling.max_new_tokens=24"]
    status, out, err = cli("replay", *of, "suite.per_task=2", "out=texts")
    assert status == 0, err
    assert "texts, encoded by the tokenizer of mini, may not give the ids that were generated" in out
    found = RunDirectory(tmp_path / "texts").read_trials()
    assert len(found) == len(live.read_trials()) and {trial.kind for trial in found} == {"replayed"}


IDS = {"prompt_ids": [5, 6, 5, 6], "output_ids": [9, 5, 6, 5]}
ANSWER: dict[str, Any] = {
    "question_id": "qa-1",
    "category": "qa",
    "choices": [{"turns": ["Yes."], "decoding_steps": [3], "new_tokens": [3], "wall_time": [0.1], "accept_lengths": [1, 1, 1]}],
}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt_ids": [5]}], "a.jsonl:1: no output_ids; expected prompt_ids and output_ids, or choices"),
        ([IDS, {**IDS, "prompt_ids": [5, 6.0]}], "a.jsonl:2: prompt_ids: 6.0 is not a token id"),
        ([{**IDS, "output_ids": []}], "a.jsonl:1: output_ids: expected a list of token ids, at least one"),
        ([{**IDS, "max_new_tokens": 3}], "a.jsonl:1: max_new_tokens=3: expected a whole number, at least the 4 ids"),
        ([{**IDS, "question_id": 7}, {**IDS, "question_id": 7}], "a.jsonl:2: turn 0 of question 7 already exists"),
        ([{**IDS, "turn": "first"}], "a.jsonl:1: turn is 'first', expected a whole number"),
        ([ANSWER, ANSWER], "a.jsonl:2: turn 0 of question qa-1 already exists"),
        ([{**ANSWER, "question_id": "qa-999"}], "a.jsonl:1: question qa-999 is not in suite mini, which has qa-9"),
        ([ANSWER, {**ANSWER, "choices": []}], "a.jsonl:2: not an answer: it has no turns"),
        ([{**ANSWER, "choices": [{**ANSWER["choices"][0], "new_tokens": 3}]}], "a.jsonl:1: not an answer: new_tok"),
        ([], "a.jsonl: holds no answer"),
    ],
)
def test_lines_that_cannot_be_replayed_are_named(
    rows: list[dict[str, Any]], message: str, refuse: Refuse, tmp_path: Path
) -> None:
    write(tmp_path / "a.jsonl", *rows)
    assert refuse("replay", "--of", "a.jsonl", "method=[pld]", "out=other").startswith(message)


def test_a_file_that_cannot_be_read(refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt_ids": [5], "output_ids": [6, 7]}\n{"prompt_ids": [5\n')
    assert refuse("replay", "--of", "a.jsonl", "out=other") == "a.jsonl:2: not a JSON object"
    assert refuse("replay", "--of", "b.jsonl", "out=other") == "b.jsonl: no such file or folder"


@pytest.mark.parametrize(
    ("row", "limit", "stops"),
    [
        ({}, 10, (7,)),  # shorter than the limit: its last token ended it
        ({"finish_reason": {"type": "stop", "matched": 7}}, 10, (7,)),  # SGLang's
        ({"finish_reason": "stop", "max_new_tokens": 6}, 6, (7,)),
        ({"finish_reason": "length"}, 3, ()),
        ({"finish_reason": "abort"}, 3, ()),
        ({"stop_id": 2}, 10, (2,)),  # an engine that leaves it out of the output
        ({"output_ids": [7, 6, 7], "finish_reason": "stop"}, 3, ()),  # ended by a string: 7 occurs earlier
        ({"max_new_tokens": 3}, 3, ()),
    ],
)
def test_where_an_answer_ends(row: dict[str, Any], limit: int, stops: tuple[int, ...], tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", {"prompt_ids": [1], "output_ids": [5, 6, 7], **row})
    ((trial, answer),) = read_ids(tmp_path / "a.jsonl", 10)
    assert (answer.limit, answer.stops) == (limit, stops)
    assert trial.finish_reason == ("eos" if stops else "length")


@pytest.mark.parametrize("label", ["pld", "oracle"])
def test_one_prompt_may_have_several_answers(label: str) -> None:
    answers = [RecordedAnswer([5, 6, 5, 6], output, 4) for output in ([9, 5, 6, 5], [9, 5, 7, 8])]
    outs = replay_answers(label, drafter_of(label, "llama"), answers)
    assert [out.output_ids for out in outs] == [answer.output for answer in answers]


def test_tokens_that_no_node_follows_are_never_accepted() -> None:
    (out,) = replay_answers("pld", drafter_of("pld", "llama"), [RecordedAnswer([5, 6, 5, 6], [9, 5, 6, 5], 4)])
    assert out.output_ids == [9, 5, 6, 5] and torch.tensor(out.committed).sum() == 3


def test_a_mean_of_no_step_is_a_dash() -> None:
    replayed = MethodReplay("pld", [fake_run.trial("pld", [], 1.0)], live=0, equal=0)
    assert [list(column.cells) for column in build_replay_table([replayed]).columns] == [["pld"], ["–"], ["–"], ["-"]]
