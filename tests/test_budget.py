"""A run with a budget stops in time, at any question of an order drawn before; what it then says of all questions is honest."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import count
from math import exp, inf
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import pandas as pd
import pytest

from specbench.analysis.budget import describe_stop, estimate_least, format_time, grow, predict_ratio
from specbench.analysis.loaded_run import read_run
from specbench.analysis.statistics import mean_interval
from specbench.analysis.summary import summarise
from specbench.decoding.loop import Generation
from specbench.decoding.sampling import Sampling
from specbench.errors import InputError
from specbench.records.run_directory import RunDirectory
from specbench.running.checks import check_stoppable
from specbench.running.resume import check_same_run, open_run
from specbench.running.schedule import Arm, Group, form_groups, order_groups, schedule_blocks
from specbench.running.time_budget import TimeBudget
from specbench.setup.compose import compose_run
from specbench.setup.rules import parse_duration
from tasks.question import Question
from tests.conftest import Cli, Tiny
from tests.fake_engine import METHODS, FakeEngine, harness
from tests.test_compose import refusal

TASKS = {"chat": 2, "qa": 1, "rag": 1}  # turns of a question


@pytest.fixture(autouse=True)
def no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specbench.records.files.os.fsync", lambda _: None)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Slow(FakeEngine):
    """Every turn takes a second of the clock."""

    def __init__(self, clock: Clock, seconds: float = 1.0) -> None:
        super().__init__(lambda label, prompt: f"{label}!")
        self.clock, self.seconds = clock, seconds

    def generate(self, label: str, prompt: list[int], sampling: Sampling) -> Generation:
        self.clock.now += 0 if self.warming else self.seconds
        return super().generate(label, prompt, sampling)


def ask(each: int = 5) -> list[Question]:
    return [Question(f"{t}{n}", t, t, ("?",) * turns) for t, turns in TASKS.items() for n in range(each)]


def run(folder: Path, seconds: float, repeats: int = 1, each: int = 5, pace: float = 1.0) -> Slow:
    """Run for so many seconds that may be measured, and write what was reached."""
    clock = Clock()
    engine = Slow(clock, pace)
    budget = TimeBudget(seconds / 0.9, 0.0, clock)  # a tenth is kept for the report
    tested = harness(folder, engine, questions=ask(each), repeats=repeats, budget=budget)
    turns = sum(len(question.turns) for question in ask(each))
    tested.run.write_config({"method": {label: {} for label in METHODS}, "repeats": repeats})
    tested.run.write_provenance({"turns": turns})
    tested.run_schedule()
    if budget.limited:
        tested.run.write_provenance({"turns": turns, "budget": budget.describe(tested.questions, 1)})
    return engine


def asked(folder: Path) -> list[str]:
    """The questions in the order in which they were first run."""
    return list(dict.fromkeys(str(trial.question_id) for trial in harness(folder, Slow(Clock())).run.read_trials()))


# The order


def test_without_a_budget_the_schedule_is_the_suites_order(tmp_path: Path) -> None:
    run(tmp_path, inf)
    assert asked(tmp_path) == [question.id for question in ask()]


def test_at_every_moment_all_tasks_are_as_far() -> None:
    order = order_groups(form_groups(ask(20), 1), seed=3)
    for stop in range(1, len(order) + 1):
        counts = Counter(group.questions[0].task for group in order[:stop])
        assert max(counts.values()) - min(counts.get(task, 0) for task in TASKS) <= 1
    assert sorted(group.id for group in order) == sorted(question.id for question in ask(20))


def test_a_task_with_fewer_questions_ends_and_the_others_go_on() -> None:
    few = [*ask(1), *(Question(f"x{n}", "x", "x", ("?",)) for n in range(9))]
    order = [group.questions[0].task for group in order_groups(form_groups(few, 1), seed=0)]
    assert set(order[:4]) == {"chat", "qa", "rag", "x"} and set(order[4:]) == {"x"} and len(order) == 12


def test_the_order_is_the_seeds() -> None:
    groups = form_groups(ask(20), 1)
    assert order_groups(groups, 0) == order_groups(groups, 0) != order_groups(groups, 1)


def test_each_question_is_as_likely_to_be_early_and_categories_are_spread() -> None:
    """One category has three quarters of the task: it has three quarters of the first four questions, too."""
    listed = [Question(str(n), "t", "many" if n % 4 else "few", ("?",)) for n in range(16)]
    first = Counter[str]()
    for seed in range(2000):
        early = [group.questions[0] for group in order_groups(form_groups(listed, 1), seed)[:4]]
        assert sum(question.category == "few" for question in early) == 1
        first.update(question.id for question in early)
    assert all(abs(first[question.id] / 2000 - 0.25) < 0.05 for question in listed), "SD of a share: 0.01"


def test_groups_that_are_not_whole_come_last_and_keep_their_numbers() -> None:
    groups = form_groups(ask(5), 2)
    order = order_groups(groups, seed=0)
    assert [len(group.questions) for group in order] == [2] * 6 + [1] * 3
    assert sorted(group.number or 0 for group in order) == list(range(9)) and {*order} == {*groups}


# Stopping


def test_it_stops_before_the_question_that_would_end_too_late(tmp_path: Path) -> None:
    """A question takes 3 s per turn; of chat two turns: the first round takes 12 s. The fourth is begun only if it fits."""
    engine = run(tmp_path, 12.5)
    assert engine.clock.now == 12 and len(asked(tmp_path)) == 3
    assert {name[:-1] for name in asked(tmp_path)} == set(TASKS)


def test_what_was_done_before_counts_against_the_budget_and_nothing_may_fit(tmp_path: Path) -> None:
    clock = Clock()
    clock.now = 20.0
    budget = TimeBudget(10, 5.0, clock)
    tested = harness(tmp_path, Slow(clock), questions=ask(), budget=budget)
    tested.run_schedule()
    assert tested.run.read_trials() == [] and budget.spent and budget.describe(ask(), 1)["used_s"] == 15


def test_a_larger_budget_resumes_the_same_order_and_none_completes_it(tmp_path: Path) -> None:
    run(tmp_path / "whole", 1e6)
    run(tmp_path / "parts", 12.5)
    first = asked(tmp_path / "parts")
    run(tmp_path / "parts", 20)
    more = asked(tmp_path / "parts")
    assert asked(tmp_path / "whole")[: len(more)] == more and more[:3] == first and len(more) > 5
    engine = run(tmp_path / "parts", inf)
    trials = harness(tmp_path / "parts", engine).run.read_trials()
    keys = {trial.key for trial in harness(tmp_path / "whole", engine).run.read_trials()}
    assert {trial.key for trial in trials} == keys and len(trials) == len(keys) == 60


def test_repeats_come_one_after_the_other_in_the_same_order(tmp_path: Path) -> None:
    run(tmp_path, 75, repeats=3)
    trials = harness(tmp_path, Slow(Clock())).run.read_trials()
    by_repeat = [list(dict.fromkeys(trial.question_id for trial in trials if trial.repeat == n)) for n in range(3)]
    assert len(by_repeat[0]) == 15 and by_repeat[2] == [] and by_repeat[1] == by_repeat[0][: len(by_repeat[1])] != []
    loaded = read_run(tmp_path)
    said = describe_stop(loaded, summarise(loaded)) or ""
    assert said.startswith("stopped by budget after the first repeat of all 15 questions; more repeats hardly narrow an interval")


def test_a_question_half_done_counts_in_no_table_and_is_finished_later(tmp_path: Path) -> None:
    """The second question's first turn takes much longer than any before, so that its second is not begun any more."""
    clock = Clock()
    questions = [Question(name, "chat", "chat", ("?", "and?")) for name in "ab"]

    class Slower(Slow):
        def generate(self, label: str, prompt: list[int], sampling: Sampling) -> Generation:
            self.seconds = 1 if clock.now < 6 else 20
            return super().generate(label, prompt, sampling)

    tested = harness(tmp_path, Slower(clock), questions=questions, repeats=1, budget=TimeBudget(40, 0.0, clock))
    tested.run_schedule()
    counts = Counter(trial.question_id for trial in tested.run.read_trials())
    assert sorted(counts.values()) == [3, 6] and clock.now == 66
    assert {trial.question_id for trial in read_run(tmp_path).trials} == {max(counts, key=lambda name: counts[name])}
    harness(tmp_path, Slow(clock), questions=questions, repeats=1).run_schedule()
    assert Counter(trial.question_id for trial in read_run(tmp_path).trials) == {"a": 6, "b": 6}


# What is said


def test_the_report_says_how_far_it_came_and_what_more_would_buy(tmp_path: Path) -> None:
    run(tmp_path, 50, each=12)
    loaded = read_run(tmp_path)
    said = describe_stop(loaded, summarise(loaded)) or ""
    assert said.startswith("stopped by budget (56 s) after 12 of 36 questions; widest overall interval: "), said
    assert "all questions: about 96 s more, ±" in said and said.endswith("; the same command resumes")
    run(tmp_path, inf, each=12)
    done = read_run(tmp_path)
    assert describe_stop(done, summarise(done)) is None


def test_a_budget_too_small_for_every_task_says_what_it_takes(tmp_path: Path) -> None:
    run(tmp_path, 5)
    loaded = read_run(tmp_path)
    said = describe_stop(loaded, summarise(loaded)) or ""
    assert "without a whole question: one of each takes about" in said, said


def test_a_new_command_begins_without_the_last_ones_budget(tmp_path: Path) -> None:
    run(tmp_path, 5)
    stored = harness(tmp_path, Slow(Clock())).run
    about: dict[str, Any] = {**dict.fromkeys(("dtype", "suite_sha256", "target_sha256", "draft_sha256")), "turns": 20}
    open_run(stored, {"method": {}, "engine": {}, "repeats": 1}, about)
    assert "budget" not in stored.read_provenance()


def test_the_prediction_is_what_so_many_questions_give() -> None:
    """Four times the questions: half the standard error, and a smaller quantile of Student's t."""
    draw = np.random.default_rng(0)
    strata = {task: pd.Series(draw.normal(size=50)) for task in TASKS}
    now = dict.fromkeys(TASKS, 50)
    assert predict_ratio(strata, now, now) == 1
    assert 0.49 < predict_ratio(strata, now, dict.fromkeys(TASKS, 200)) < 0.5
    assert grow({"a": 1, "b": 1}, {"a": 2, "b": 9}, {"a": 1.0, "b": 2.0}, 7.5) == {"a": 2, "b": 4}
    assert estimate_least({"ready_s": 5.0, "question_s": {"a": 1.0, "b": 2.0}}) == 8
    assert [format_time(seconds) for seconds in (45, 1800, 18_000)] == ["45 s", "30 minutes", "5.0 hours"]


# Honest intervals


def plant(rng: random.Random, each: int) -> list[tuple[Question, float, float]]:
    """Questions with log speedup and seconds: the slower half takes several times as long."""
    planted = []
    for number, (task, turns) in enumerate(TASKS.items()):
        for n in range(each):
            z = rng.gauss(0, 1)
            speedup = 0.3 * number + 0.35 * z
            planted.append(
                (Question(f"{task}{n}", task, task, ("?",) * turns), speedup, exp(-0.9 * z + rng.gauss(0, 0.4) - number))
            )
    return planted


def stop_in_time(planted: Sequence[tuple[Question, float, float]], groups: Sequence[Group], seconds: float) -> list[list[float]]:
    """The log speedups, by task, of the questions that a budget reaches in this order."""
    clock = Clock()
    budget = TimeBudget(seconds, 0.0, clock)
    facts = {question.id: (speedup, length) for question, speedup, length in planted}
    done = Counter[Any]()
    arm = Arm("autoregressive", "autoregressive", FakeEngine(lambda *_: "x"))
    for block in schedule_blocks(groups, [arm], 0, 0):
        if not budget.admits(block):
            break
        length = facts[str(block.group.id)][1] / block.group.turns
        clock.now += length
        budget.add(block, length)
        done[block.group.questions[0]] += 1
    whole = [question for question, turns in done.items() if turns == len(question.turns)]
    return [[facts[question.id][0] for question in whole if question.task == task] for task in TASKS]


def measure_coverage(in_order: bool, runs: int = 400) -> tuple[float, float]:
    """The share of 95 % intervals that hold the true mean, and the estimates' bias in their standard deviations."""
    truth = float(np.mean([0.3 * number for number in range(len(TASKS))]))
    held, estimates = 0, []
    for seed in range(runs):
        rng = random.Random(seed)
        planted = plant(rng, 40)
        groups = form_groups([question for question, *_ in planted], 1)
        if in_order:
            length = {question.id: seconds for question, _, seconds in planted}
            order = sorted(groups, key=lambda group: length[str(group.id)])
        else:
            order = order_groups(groups, seed)
        strata = stop_in_time(planted, order, rng.choice((20, 35, 60)))
        interval = mean_interval(strata, seed=seed, resamples=400)
        held += interval.low <= truth <= interval.high
        estimates.append(interval.estimate - truth)
    return held / runs, float(np.mean(estimates) / np.std(estimates))


def test_intervals_cover_at_whatever_moment_the_clock_stops() -> None:
    """With 400 runs the share's SD is 1.1 %. A question's length and its speedup have a correlation of -0.9."""
    covered, bias = measure_coverage(in_order=False)
    assert 0.915 < covered < 0.985, covered
    assert abs(bias) < 0.35, "at most a question's worth"


def test_the_simulation_would_notice_an_order_that_is_not_drawn() -> None:
    covered, bias = measure_coverage(in_order=True, runs=60)
    assert covered < 0.5 and bias > 1, "short questions first: the fast ones"


# Settings


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("1h1m1s", 3661)])
def test_a_time_has_its_unit(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds and compose_run([f"budget={text}"]).budget_s == seconds


@pytest.mark.parametrize("wrong", ["30", "1.5h", "m", "-5m", "5s", "0m", "1m1h", "30M", "''", "true"])
def test_other_budgets_are_refused(wrong: str) -> None:
    assert "expected a time with its unit, such as 90s, 30m, 2h or 1h30m (at least 10s), or null for none" in refusal(
        f"budget={wrong}"
    )


def test_a_budget_does_not_go_with_what_counts_as_a_whole() -> None:
    assert "under load a pass counts as a whole or not at all" in refusal("budget=1m", "concurrency=2")
    warm: Any = type("Warm", (), {"warm": True})()
    with pytest.raises(InputError, match="budget=1m: recycling keeps what it has seen, so only its whole repeats count"):
        check_stoppable({"recycling": warm}, "1m")
    check_stoppable({"recycling": warm}, None)


def test_the_budget_is_no_part_of_what_a_run_is(tmp_path: Path) -> None:
    assert compose_run(["budget=1m"]).recorded == compose_run([]).recorded
    harness(tmp_path, Slow(Clock())).run.write_config(compose_run(["budget=1m"]).recorded)
    check_same_run(RunDirectory(tmp_path), compose_run(["budget=2h"]).recorded)


@pytest.mark.full
def test_the_command_stops_says_so_and_resumes(cli: Cli, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that gains so many seconds whenever it is looked at."""

    def gain(seconds: float) -> None:
        ticks = count(1)
        ticking = partial(TimeBudget, clock=lambda: monotonic() + seconds * next(ticks))
        monkeypatch.setattr("specbench.running.execute.TimeBudget", ticking)

    command = tiny.overrides("task=[qa,mt_bench]", "method=[pld]", "repeats=1", "suite.per_task=9", "out=run")
    gain(20)
    status, out, err = cli("run", *command, "budget=10s")
    assert status == 2 and "page:" not in out and "budget=10s: too short for one question: loading and warming up took" in err
    gain(4)
    status, out, _ = cli("run", *command, "budget=5m")
    assert status == 0 and "notice: the run: stopped by budget (5 minutes) after " in out and "turns still to be run" not in out
    assert "stopped by budget (5 minutes) after " in (tmp_path / "reports" / "run" / "index.html").read_text()
    reached = json.loads((tmp_path / "run" / "run.json").read_text())["budget"]
    assert reached["seconds"] == 300 > reached["used_s"] > reached["ready_s"] > 0
    assert reached["questions"] == {"mt_bench": 9, "qa": 9} and min(reached["question_s"].values()) > 0
    status, out, _ = cli("run", *command)
    assert status == 0 and "stopped by budget" not in out
    assert (pd.read_csv(tmp_path / "run" / "summary.csv")["questions"] == [9, 9, 18] * 2).all()
