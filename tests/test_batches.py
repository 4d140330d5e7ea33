"""Batched runs: the same texts and counts as one question at a time, one time per group, and nothing counted twice."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from specbench.analysis.groups import count_left_out, merge_groups
from specbench.analysis.loaded_run import read_run
from specbench.analysis.metrics import build_question_frame, build_trial_frame
from specbench.analysis.summary import summarise
from specbench.decoding.loop import CapacityError, generate, generate_group
from specbench.decoding.sampling import Sampling
from specbench.errors import InputError
from specbench.records.run_directory import RunDirectory
from specbench.records.trial import BASELINE, PER_STEP, Trial
from specbench.report.alarms import find_alarms
from specbench.running.attempts import Attempts
from specbench.running.checks import check_batch
from specbench.running.schedule import Arm, form_groups
from tasks.question import Question
from tests.conftest import Cli, Refuse
from tests.fake_engine import FakeEngine
from tests.methods_under_test import drafter_of, each_preset, target_of
from tests.tiny import prompts

RUN = ("limit=5", "repeats=2", "task=[qa]", "method=[pld,sps]", "sampling.max_new_tokens=12", "check_baseline=false", "threads=1")
SHARING = (  # their rows share what was learned
    *("token_recycling_spec_bench", "token_recycling_warm", "self_speculative_paper"),
    *("suffix", "suffix_tree", "suffix_vllm", "suffix_eagle2"),
)
COUNTS = (*PER_STEP, "output_ids", "finish_reason", "draft_forwards")


def decode(label: str, samplings: list[Sampling], batch: int, order: list[int] | None = None) -> list[Any]:
    """Return the counts of every prompt, decoded in groups. order: of the prompts."""
    drafter = drafter_of(label, "llama")
    drafter.bind(target_of("llama"))
    texts, outs = prompts(len(samplings), seed=4), []
    texts = [texts[place] for place in order or range(len(texts))]
    for start in range(0, len(texts), batch):
        group = slice(start, start + batch)
        outs += generate_group(drafter.target, drafter, texts[group], samplings[group])
    return [tuple(getattr(out, name) for name in COUNTS) for out in outs]


@each_preset
@pytest.mark.parametrize("batch", [3, pytest.param(8, marks=pytest.mark.slow)])
def test_a_question_in_a_batch_has_the_text_and_the_counts_that_it_has_alone(label: str, batch: int) -> None:
    samplings = [Sampling(max_new_tokens=16)] * 9
    alone, together = (decode(label, samplings, size) for size in (1, batch))
    if label not in SHARING:
        assert together == alone
    assert [one[len(PER_STEP)] for one in together] == [one[len(PER_STEP)] for one in alone], "the texts"


@each_preset
@pytest.mark.parametrize("batch", [3, pytest.param(8, marks=pytest.mark.slow)])
def test_random_numbers_belong_to_the_question(label: str, batch: int) -> None:
    samplings = [Sampling(0.9, 0.95, max_new_tokens=16, seed=seed) for seed in range(20, 29)]
    alone, together = (decode(label, samplings, size) for size in (1, batch))
    if label not in SHARING:
        assert together == alone


@each_preset
def test_questions_that_end_early_and_groups_in_another_order_change_no_count(label: str) -> None:
    """Ten questions, seven at a time, which end at their own stop tokens: after 1 to 40 tokens."""
    free = [Sampling(max_new_tokens=40)] * 10
    texts = [dict(zip(COUNTS, out, strict=True))["output_ids"] for out in decode("autoregressive", free, 1)]
    stops = tuple({text[place] for text, place in zip(texts[:4], (0, 6, 14, 25), strict=True)})
    samplings = [Sampling(max_new_tokens=40, stop_token_ids=stops)] * 10
    order = [7, 2, 9, 0, 4, 6, 8, 1, 5, 3]
    alone, together, others = decode(label, samplings, 1), decode(label, samplings, 7), decode(label, samplings, 7, order)
    lengths = [len(dict(zip(COUNTS, out, strict=True))["output_ids"]) for out in alone]
    assert min(lengths) <= 2 and max(lengths) >= 20, "they end far apart"
    if label not in SHARING:
        assert together == alone
        assert others == [alone[place] for place in order]


@each_preset
def test_most_of_a_group_ends_at_its_first_token_in_a_later_turn(label: str) -> None:
    """The drafter's store has been laid out by an earlier turn, and nothing has been written to it in this one."""
    drafter = drafter_of(label, "llama")
    drafter.bind(target_of("llama"))
    texts, free = prompts(4, seed=4), [Sampling(max_new_tokens=12)] * 4
    alone = [generate(drafter.target, drafter, [text], free[0])[0] for text in texts]
    drafter.reset()
    generate_group(drafter.target, drafter, texts, free)
    ended = [dataclasses.replace(free[0], stop_token_ids=tuple({out.output_ids[0] for out in alone[:3]}))] * 4
    outs = generate_group(drafter.target, drafter, texts, ended)
    assert [out.error for out in outs] == [None] * 4
    if outs[3].output_ids[0] not in ended[0].stop_token_ids:
        assert [len(out.output_ids) for out in outs[:3]] == [1, 1, 1]
        assert outs[3].output_ids == cut(alone[3].output_ids, ended[0].stop_token_ids)


def cut(tokens: list[int], stops: tuple[int, ...]) -> list[int]:
    """Return the tokens up to the first stop token."""
    return tokens[: next((place + 1 for place, token in enumerate(tokens) if token in stops), len(tokens))]


@pytest.mark.parametrize("label", ["hydra_heads", "eagle", "eagle2", "eagle3", "medusa", "sps", "sam_eagle2"])
def test_a_group_runs_to_the_end_of_the_context(label: str) -> None:
    """Beside a sequence at the last position, others accept several tokens at once: their padding lies within the context."""
    drafter = drafter_of(label, "llama")
    drafter.bind(target_of("llama"))
    context = drafter.target.context
    (short,) = prompts(1, seed=4)
    long = torch.cat([short] * (context // len(short)))[: context - 30]
    texts = [long, long[: context - 40], long[5 : context - 60]]
    samplings = [Sampling(max_new_tokens=context)] * 3
    outs = generate_group(drafter.target, drafter, texts, samplings)
    alone = [generate(drafter.target, drafter, [text], samplings[0])[0] for text in texts]
    assert [out.error for out in outs] == [None] * 3
    assert [(out.output_ids, out.finish_reason) for out in outs] == [(out.output_ids, "capacity") for out in alone]


def test_a_prompt_that_does_not_fit_fails_alone() -> None:
    target, drafter = target_of("llama"), drafter_of("pld", "llama")
    drafter.bind(target)
    long = torch.ones(target.context, dtype=torch.long)
    short = prompts(2, seed=4)
    outs = generate_group(target, drafter, [short[0], long, short[1]], [Sampling(max_new_tokens=5)] * 3)
    assert isinstance(outs[1].error, CapacityError) and outs[1].output_ids == []
    alone = [generate(target, drafter, [one], Sampling(max_new_tokens=5))[0].output_ids for one in short]
    assert [outs[0].output_ids, outs[2].output_ids] == alone
    with pytest.raises(CapacityError):
        generate(target, drafter, [long], Sampling(max_new_tokens=5))


def test_logits_that_are_no_numbers_fail_their_own_row(monkeypatch: pytest.MonkeyPatch) -> None:
    target, drafter = target_of("llama"), drafter_of("pld", "llama")
    drafter.bind(target)
    texts, sampling = prompts(3, seed=4), Sampling(max_new_tokens=9)
    alone = [generate(target, drafter, [one], sampling)[0] for one in texts]
    forward, steps = target.forward, []

    def broken(store: Any, trees: Any, **kwargs: Any) -> Any:
        outs = forward(store, trees, **kwargs)
        steps.append(len(trees))
        if len(steps) == 4:
            outs[1].logits.fill_(torch.nan)
        return outs

    monkeypatch.setattr(target, "forward", broken)
    outs = generate_group(target, drafter, texts, [sampling] * 3)
    assert isinstance(outs[1].error, ArithmeticError) and str(outs[1].error).startswith("after ")
    assert [outs[row].output_ids for row in (0, 2)] == [alone[row].output_ids for row in (0, 2)]
    assert outs[0].error is None and outs[2].error is None


def made_up_group(method: str, tokens: list[int], seconds: float) -> list[Trial]:
    """A turn of a group: one row per question, of so many tokens."""
    about = {"run_id": "r", "suite": "s", "task": "qa", "category": "qa", "turn": 0, "context": "reference", "method": method}
    order = {"seed": 0, "repeat": 0, "order": 0, "state": "cold", "prompt_tokens": 1, "prompt_sha256": "", "finish_reason": "eos"}
    time = {"prefill_s": seconds / 3, "decode_s": seconds * 2 / 3, "batch": len(tokens), "group": 0}
    shared: dict[str, Any] = about | order | time
    return [Trial(**shared, new_tokens=new, question_id=place, place=place) for place, new in enumerate(tokens)]


def list_questions(**counts: int) -> list[Question]:
    return [Question(f"{task}-{i}", task, task, ("?",)) for task, count in counts.items() for i in range(count)]


def test_groups_hold_questions_of_one_task_with_as_many_turns() -> None:
    questions = [*list_questions(qa=5, rag=3), Question("two", "qa", "qa", ("?", "?"))]
    groups = form_groups(questions, 2)
    assert [[one.id for one in group.questions] for group in groups] == [
        ["qa-0", "qa-1"], ["qa-2", "qa-3"], ["qa-4"], ["rag-0", "rag-1"], ["rag-2"], ["two"],
    ]  # fmt: skip
    assert [group.number for group in groups] == list(range(6))
    assert [(group.questions, group.number) for group in form_groups(questions, 1)] == [((one,), None) for one in questions]
    with pytest.raises(
        InputError, match="^batch=4: task rag has 3 questions with the same number of turns; expected at most batch=3$"
    ):
        check_batch(questions, 4)
    check_batch(questions, 3)


# Runs


@pytest.fixture
def batched(cli: Cli, tmp_path: Path) -> Path:
    assert cli("run", *RUN, "batch=2", "out=batched").status == 0
    return tmp_path / "batched"


def test_a_batched_run_has_the_counts_of_single_questions_and_one_time_per_group(batched: Path, cli: Cli, tmp_path: Path) -> None:
    assert cli("run", *RUN, "out=single").status == 0
    run, single = read_run(batched), read_run(tmp_path / "single")
    assert {trial.key for trial in run.trials} == {trial.key for trial in single.trials}
    expected = {trial.key: trial for trial in single.trials}
    for trial in run.trials:
        other = expected[trial.key]
        assert all(getattr(trial, name) == getattr(other, name) for name in (*PER_STEP, "output_sha256", "draft_forwards"))
    groups: dict[Any, list[Trial]] = {}
    for trial in run.trials:
        groups.setdefault((trial.method, trial.block), []).append(trial)
    for rows in groups.values():
        assert len({(row.prefill_s, row.decode_s, row.energy_j, row.peak_memory_bytes) for row in rows}) == 1
        assert {row.batch for row in rows} == {len(rows)} and [row.place for row in rows] == list(range(len(rows)))
    assert sorted(len(rows) for rows in groups.values()) == [1] * 6 + [2] * 12, "3 methods, 2 repeats: 2 groups of 2, one of 1"
    assert {(trial.batch, trial.group, trial.place) for trial in single.trials} == {(1, None, None)}


def test_a_group_is_counted_once(batched: Path) -> None:
    run = read_run(batched)
    rows = summarise(run).set_index(["method", "task"])
    whole = [trial for trial in run.trials if trial.method == "pld" and trial.batch == 2]
    seconds = {trial.block: trial.seconds for trial in whole}
    rate = sum(trial.new_tokens for trial in whole) / sum(seconds.values())
    assert rows.loc[("pld", "qa"), "tokens_per_second"] == pytest.approx(rate)
    assert rows.loc[("pld", "qa"), "questions"] == 4 and rows.loc[("pld", "qa"), "batch"] == 2
    assert np.isnan(rows["memory_share"].to_numpy(float)).all(), "the weights are read once for the whole batch"
    for name in ("conversion", "mean_accepted_tokens"):
        assert rows.loc[(BASELINE, "qa"), name] == pytest.approx(1)
    said = [alarm.message for alarm in find_alarms(run, summarise(run))]
    assert "1 question is left over in groups smaller than the batch, and so in no speedup" in said
    assert count_left_out(run.trials) == 1


def test_a_group_with_a_failed_question_is_left_out_of_both_sides(batched: Path) -> None:
    trials = read_run(batched).trials
    broken = {"finish_reason": "error", "error": "no", "new_tokens": 0, **dict.fromkeys(("prefill_s", "decode_s", *PER_STEP))}
    hit = next(trial for trial in trials if trial.method == "pld" and trial.place == 1)
    changed = [dataclasses.replace(trial, **broken) if trial is hit else trial for trial in trials]  # type: ignore[arg-type]
    questions = build_question_frame(merge_groups(build_trial_frame(changed)))
    failed = questions[questions["failed"]]
    beside = [one.question_id for one in trials if (one.method, one.repeat, one.group) == ("pld", hit.repeat, hit.group)]
    expected = ["pld", "+".join(map(str, beside)), hit.repeat]
    assert failed[["method", "question_id", "repeat"]].to_numpy().tolist() == [expected]


def test_a_killed_group_is_decoded_again_whole(batched: Path, cli: Cli, tmp_path: Path) -> None:
    path = batched / "trials.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    rows = read_run(batched).attempts
    first = next(i for i, trial in enumerate(rows) if i > 4 and trial.batch == 2 and trial.place == 0)
    path.write_text("".join(lines[: first + 1]) + '{"schema": 1, "run_id"')
    assert cli("run", *RUN, "batch=2", "out=batched").status == 0
    again = RunDirectory(batched).read_attempts()
    assert [trial.key for trial in again] == [trial.key for trial in rows]


def test_other_batches_are_other_runs(batched: Path, refuse: Refuse) -> None:
    assert "its batch is 2, here 4" in refuse("run", *RUN, "batch=4", "out=batched")
    assert refuse("run", *RUN, "batch=2", "engine=[native,hf]").endswith(
        "engine hf decodes one question at a time; expected batch=1"
    )
    assert "expected at most batch=5" in refuse("run", *RUN, "batch=6", "out=other")
    assert "decoded 2 questions at a time" in refuse("export", "spec_bench", "batched", "--out", "answers")


def test_the_time_of_a_group_is_spent_once() -> None:
    pair = made_up_group("pld", [4, 4], seconds=3.0)
    attempts = Attempts(pair, [Arm("pld", "pld", FakeEngine(lambda *_: ""))])
    assert attempts._first == 3.0 and attempts._estimate(pair[0].block) == 3.0


def test_runs_of_one_question_at_a_time_pass_unchanged() -> None:
    frame = pd.DataFrame({"group": [None], "batch": [1]})
    assert merge_groups(frame) is frame
