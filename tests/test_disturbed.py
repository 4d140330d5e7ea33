"""Disturbed turns: marked, their blocks measured again within a fifth more time, the last complete attempt counts."""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specbench.analysis.loaded_run import read_run
from specbench.analysis.summary import summarise
from specbench.records.attempts import select_counted
from specbench.records.run_directory import RunDirectory
from specbench.running.attempts import MOST_ATTEMPTS
from tasks.question import Question
from tests.fake_engine import METHODS, FakeEngine, Quiet, harness
from tests.quiet import PlantedMeter
from tests.test_disturbance import BUSY, alarms

MANY = [Question(f"q{number}", "qa", "qa", (f"{number}?",)) for number in range(12)]  # a block is a twelfth of a repeat
MARK = Callable[[str, str, int], list[str] | None]  # method, prompt, how often they have run together before


@pytest.fixture(autouse=True)
def no_disk_and_a_fifth_more_time(monkeypatch: pytest.MonkeyPatch, quiet_machine: None) -> None:
    monkeypatch.setattr("specbench.records.files.os.fsync", lambda _: None)
    monkeypatch.setattr("specbench.running.attempts.MORE_TIME", 0.2)


def named(label: str, prompt: list[int]) -> str:
    return f"{label}!"


def run(folder: Path, mark: MARK, engine: FakeEngine | None = None, **settings: Any) -> FakeEngine:
    """A run in which `mark` says what disturbs each turn."""
    engine = engine or FakeEngine(named)
    seen = Counter[tuple[str, str]]()

    def find_reasons() -> list[str] | None:
        place = engine.log[-1]
        seen[place] += 1
        return mark(*place, seen[place] - 1)

    tested = harness(folder, engine, **{"questions": MANY, "repeats": 1, **settings})
    tested._load = PlantedMeter(find_reasons)  # type: ignore[assignment]
    tested.run_schedule()
    return engine


def once(label: str, question: int) -> MARK:
    """The first time that a method answers a question, it is disturbed."""
    return lambda method, prompt, before: [BUSY] * (method == label and prompt.startswith(f"{question}?") and not before)


def rows(folder: Path) -> list[tuple[str, Any, int, int | None]]:
    return [(one.method, one.question_id, one.attempt, one.arms) for one in RunDirectory(folder).read_attempts()]


def test_a_quiet_run_measures_nothing_again(tmp_path: Path) -> None:
    run(tmp_path, lambda *_: [])
    trials = RunDirectory(tmp_path).read_attempts()
    assert len(trials) == 36 and all((one.disturbed, one.attempt, one.arms) == ([], 1, None) for one in trials)


def test_where_nothing_is_counted_nothing_is_known(tmp_path: Path) -> None:
    run(tmp_path, lambda *_: None)
    trials = RunDirectory(tmp_path).read_attempts()
    assert len(trials) == 36 and {one.disturbed for one in trials} == {None}


@pytest.mark.parametrize("label", METHODS)
def test_the_whole_block_is_measured_again_after_the_repeat_whoever_was_disturbed(tmp_path: Path, label: str) -> None:
    run(tmp_path, once(label, 3), repeats=2)
    written = rows(tmp_path)
    again = written[36:39]
    assert sorted(again) == [(method, "q3", 2, 3) for method in sorted(METHODS)], "at the end of its repeat"
    assert len(written) == 36 + 3 + 36 and all(attempt == 1 for *_, attempt, _ in written[:36] + written[39:])
    trials = RunDirectory(tmp_path).read_attempts()
    assert [one.method for one in trials if one.disturbed] == [label], "the earlier attempt stays, with its mark"
    counted = {one.key: one for one in RunDirectory(tmp_path).read_trials()}
    assert len(counted) == 72 and all(counted[method, 0, "q3", 0].attempt == 2 for method in METHODS)
    assert not any(one.disturbed for one in counted.values())


def test_the_text_and_the_context_of_later_turns_stay_those_of_the_first_attempt(tmp_path: Path) -> None:
    calls = Counter[str]()

    def drifting(label: str, prompt: list[int]) -> str:
        calls[label] += 1
        return f"{label}{calls[label]:03}"

    questions = [Question("first", "mt_bench", "writing", ("first?", "second?")), *MANY]
    mark: MARK = lambda method, prompt, before: [BUSY] * (prompt == "first?\n" and not before)  # noqa: E731
    engine = run(tmp_path, mark, FakeEngine(drifting), questions=questions, repeats=2)
    assert len({text for _, text in engine.log if "second?" in text}) == 1
    assert len(RunDirectory(tmp_path).read_texts()) == 14 * 3, "texts are those of the first attempts"
    resumed = run(tmp_path, mark, FakeEngine(drifting), questions=questions, repeats=3)
    assert {text for _, text in resumed.log if "second?" in text} == {text for _, text in engine.log if "second?" in text}


def test_a_block_that_is_disturbed_again_and_again_is_left_and_said_to_be(tmp_path: Path) -> None:
    always: MARK = lambda method, prompt, before: [BUSY] * (method == "pld" and prompt.startswith("3?"))  # noqa: E731
    run(tmp_path, always, repeats=2)
    attempts = Counter((one.repeat, one.attempt) for one in RunDirectory(tmp_path).read_attempts() if one.question_id == "q3")
    assert max(attempt for _, attempt in attempts) == MOST_ATTEMPTS
    summary = summarise(read_run(tmp_path))
    pld = summary[(summary["method"] == "pld") & (summary["task"] == "overall")].iloc[0]
    assert pld[["disturbed", "remeasured", "still_disturbed"]].tolist() == [2, 2, 2]


def test_later_attempts_take_at_most_a_fifth_of_the_time(tmp_path: Path) -> None:
    run(tmp_path, lambda *_: [BUSY], repeats=3)
    trials = RunDirectory(tmp_path).read_attempts()
    first, later = (sum(one.seconds for one in trials if (one.attempt > 1) == again) for again in (False, True))
    assert 0.15 * first < later <= 0.2 * first
    ended = next(place for place, one in enumerate(trials) if one.attempt == 1 and one.repeat == 1)
    early = sum(one.seconds for one in trials[:ended] if one.attempt > 1)
    assert early <= 0.2 * first / 3, "after the first repeat, a fifth of that repeat"


def test_a_single_question_is_marked_alone_there_is_no_time_for_it(tmp_path: Path) -> None:
    run(tmp_path, lambda *_: [BUSY], questions=MANY[:1])
    assert [attempt for *_, attempt, _ in rows(tmp_path)] == [1, 1, 1]


def test_warm_arms_are_marked_and_never_measured_again(tmp_path: Path) -> None:
    engine = run(tmp_path, once("sps", 3), FakeEngine(named, warm=["sps"]))
    assert len(rows(tmp_path)) == 36, "only the warm arm was disturbed"
    mark: MARK = lambda method, prompt, before: [BUSY] * (prompt == "3?\n" and not before)  # noqa: E731
    engine = run(tmp_path / "all", mark, FakeEngine(named, warm=["sps"]))
    assert sorted(rows(tmp_path / "all")[36:]) == [("autoregressive", "q3", 2, 2), ("pld", "q3", 2, 2)]
    assert Counter(label for label, text in engine.log if text == "3?\n") == {"autoregressive": 2, "pld": 2, "sps": 1}
    found = [alarm for alarm in alarms(tmp_path / "all") if "disturbed" in alarm.message]
    assert found[0].level == "alarm" and "1 of 36 turns are disturbed (sps 1)" in found[0].message


def test_error_rows_are_not_marked_and_a_disturbed_block_with_one_is_measured_whole(tmp_path: Path) -> None:
    def answers(label: str, prompt: list[int]) -> str:
        if label == "sps" and bytes(prompt).startswith(b"3?"):
            raise RuntimeError("no")
        return f"{label}!"

    run(tmp_path, once("pld", 3), FakeEngine(answers))
    trials = RunDirectory(tmp_path).read_attempts()
    assert [(one.disturbed, one.attempt) for one in trials if one.failed] == [(None, 1), (None, 2)]
    assert len(trials) == 39 and len(RunDirectory(tmp_path).read_trials()) == 36


def test_a_fast_turn_among_slow_repeats_is_no_reason_and_a_slow_one_is(tmp_path: Path) -> None:
    run(tmp_path, lambda *_: [], slowed(lambda label, text, before: label == "pld" and text == "3?\n" and before == 1), repeats=3)
    late = [one for one in RunDirectory(tmp_path).read_attempts() if one.attempt > 1]
    assert {(one.method, one.repeat, one.question_id) for one in late} == {(method, 1, "q3") for method in METHODS}
    loaded = read_run(tmp_path)
    assert loaded.disturbed == {(("pld", 1, "q3", 0), 1): ["time: 4.0 times its other repeats"]}


def slowed(when: Callable[[str, str, int], bool]) -> FakeEngine:
    """Turns that take four times as long where `when` holds."""

    class Slowed(FakeEngine):
        seen = Counter[tuple[str, str]]()

        def generate(self, label: str, prompt: list[int], sampling: Any) -> Any:
            out = super().generate(label, prompt, sampling)
            place = (label, bytes(prompt).decode())
            slow = not self.warming and when(*place, self.seen[place])
            self.seen[place] += not self.warming
            return replace(out, prefill_s=1.0, decode_s=2.0) if slow else out

    return Slowed(named)


@pytest.mark.parametrize("after", range(73, 79))
def test_a_kill_while_measuring_again_mixes_nothing(tmp_path: Path, after: int) -> None:
    """Blocks 3 and 5 are measured again after 72 turns; the process dies after so many turns."""
    mark: MARK = lambda method, prompt, before: [BUSY] * (prompt in ("3?\n", "5?\n") and method == "pld" and not before)  # noqa: E731
    more = [Question(f"q{number}", "qa", "qa", (f"{number}?",)) for number in range(24)]
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, mark, build_mortal(after, warm=False), questions=more)
        raise KeyboardInterrupt  # it was over before
    stopped = RunDirectory(tmp_path).read_trials()
    per_block = {one.block: {other.attempt for other in stopped if other.block == one.block} for one in stopped}
    assert len(stopped) == 72 and all(len(attempts) == 1 for attempts in per_block.values()), "one attempt per block counts"
    whole = (after - 72) // 3
    assert sum(attempts == {2} for attempts in per_block.values()) == whole

    before = (tmp_path / "trials.jsonl").read_bytes()
    run(tmp_path, lambda *_: [], questions=more)
    assert (tmp_path / "trials.jsonl").read_bytes().startswith(before), "nothing on disk is changed"
    ended = RunDirectory(tmp_path).read_trials()
    assert not any(one.disturbed for one in ended) and len(ended) == 72
    torn = (after - 72) % 3 > 0
    assert len(RunDirectory(tmp_path).read_attempts()) == after + 3 * (2 - whole), "a torn attempt starts again, whole"
    assert max(one.attempt for one in ended) == 2 + torn


def test_a_finished_run_stays_as_it_is(tmp_path: Path) -> None:
    run(tmp_path, once("pld", 3), repeats=2)
    before = (tmp_path / "trials.jsonl").read_bytes()
    engine = run(tmp_path, lambda *_: [BUSY], repeats=2)
    assert (tmp_path / "trials.jsonl").read_bytes() == before and not engine.warm_ups


def test_a_run_killed_before_it_measured_again_does_so_when_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as stopped:
        stopped.setattr("specbench.running.attempts.MORE_TIME", 0.0)
        run(tmp_path, once("pld", 3))
    assert len(rows(tmp_path)) == 36
    engine = run(tmp_path, lambda *_: [])
    assert sorted(rows(tmp_path)[36:]) == [(method, "q3", 2, 3) for method in sorted(METHODS)] and engine.warm_ups


def test_a_method_added_later_leaves_the_attempts_before_it_alone(tmp_path: Path) -> None:
    run(tmp_path, once("pld", 3), methods=METHODS[:2])
    run(tmp_path, once("sps", 5))
    counted = {(one.method, one.question_id): one.attempt for one in RunDirectory(tmp_path).read_trials()}
    assert counted["pld", "q3"] == 2 and counted["sps", "q3"] == 1
    assert {counted[method, "q5"] for method in METHODS} == {2}, "all methods of the run were there"
    run(tmp_path, lambda *_: [BUSY], methods=("autoregressive", "pld"), repeats=2)
    late = [one for one in RunDirectory(tmp_path).read_attempts() if one.repeat == 0 and one.attempt > 2]
    assert late == [], "a block that holds another method is left alone"


def test_the_progress_counts_the_turns_of_the_run_alone(tmp_path: Path) -> None:
    tested = harness(tmp_path, engine := FakeEngine(named), questions=MANY, repeats=1)
    marks = iter([[BUSY]])
    tested._load = PlantedMeter(lambda: next(marks, []))  # type: ignore[assignment]
    tested.run_schedule()
    assert isinstance(tested.watcher, Quiet) and tested.watcher.began == [(36, 0)]
    assert sum(one.attempt == 1 for one in tested.watcher.trials) == 36 and len(tested.watcher.trials) == 39
    assert len(engine.log) == 39 + 3


def check_any_run(seed: int, share: float, kills: list[int], warm: bool) -> None:
    """Kill a run again and again while turns are disturbed at random; it ends with every turn once, blocks whole, on budget."""
    draw, questions = random.Random(seed), [Question("two", "mt_bench", "writing", ("a?", "b?")), *MANY[:6]]
    mark: MARK = lambda *_: [BUSY] * (draw.random() < share)  # noqa: E731
    with tempfile.TemporaryDirectory() as folder:
        for kill in kills:
            with suppress(KeyboardInterrupt):
                run(Path(folder), mark, build_mortal(kill, warm), questions=questions, repeats=2)
        run(Path(folder), mark, FakeEngine(named, warm=["sps"] * warm), questions=questions, repeats=2)
        everything = RunDirectory(Path(folder)).read_attempts()
    counted = select_counted(everything)
    assert {one.key for one in counted} == {
        (m, r, q.id, t) for m in METHODS for r in range(2) for q in questions for t in turns(q)
    }
    again = {one.block: one.attempt for one in counted if one.attempt > 1}
    cold = [one for one in counted if one.state == "cold"]
    assert len(counted) == 48 and all(one.attempt == again.get(one.block, 1) for one in cold), "no block mixes its attempts"
    assert all(one.attempt == 1 for one in counted if one.state == "warm")
    first, later = (sum(one.seconds for one in everything if (one.attempt > 1) == is_later) for is_later in (False, True))
    assert later <= 0.2 * first + 1e-9
    firsts = Counter(one.key for one in everything if one.attempt == 1 and one.state == "cold")
    assert set(firsts.values()) == {1}, "no first attempt runs twice"


def turns(question: Question) -> range:
    return range(len(question.turns))


def build_mortal(after: int, warm: bool) -> FakeEngine:
    """An engine whose process dies after so many turns."""
    left = [after]

    def mortal(label: str, prompt: list[int]) -> str:
        left[0] -= not engine.warming
        if left[0] < 0:
            raise KeyboardInterrupt
        return f"{label}!"

    engine = FakeEngine(mortal, warm=["sps"] * warm)
    return engine


ANY_RUN = given(
    st.integers(0, 2**32), st.sampled_from([0.0, 0.02, 0.2, 1.0]), st.lists(st.integers(0, 60), max_size=4), st.booleans()
)
FIXTURES = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@ANY_RUN
@settings(max_examples=15, deadline=None, suppress_health_check=FIXTURES)
def test_any_run_killed_at_any_moment_ends_whole(seed: int, share: float, kills: list[int], warm: bool) -> None:
    check_any_run(seed, share, kills, warm)


@pytest.mark.slow
@ANY_RUN
@settings(max_examples=2000, deadline=None, suppress_health_check=FIXTURES)
def test_any_of_many_runs_killed_at_any_moment_ends_whole(seed: int, share: float, kills: list[int], warm: bool) -> None:
    check_any_run(seed, share, kills, warm)
