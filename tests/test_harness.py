"""The harness on a fake engine: every block is complete and in random order; contexts, error rows, warm arms."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from specbench.decoding.loop import CapacityError, Generation
from specbench.decoding.sampling import Sampling
from specbench.errors import InputError
from specbench.records.trial import hash_ids
from specbench.running.schedule import Arm, Schedule, build_arms, form_groups, schedule_blocks
from tasks.question import Question
from tests.fake_engine import METHODS, QUESTIONS, FakeEngine, Quiet, harness


@pytest.fixture(autouse=True)
def no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests write thousands of lines; an fsync after each would take most of the time."""
    monkeypatch.setattr("specbench.records.files.os.fsync", lambda _: None)


TURNS = [("q1", 0), ("q1", 1), ("q2", 0), ("q3", 0)]


def named(label: str, prompt: list[int]) -> str:
    """Each method answers with its own name."""
    return f"{label}!"


def failing(label: str, when: Callable[[str], bool], error: Exception) -> Callable[[str, list[int]], str]:
    """One method fails where `when` holds of the prompt; all others, and it elsewhere, answer with their names."""

    def answers(method: str, prompt: list[int]) -> str:
        if method == label and when(bytes(prompt).decode()):
            raise error
        return f"{method}!"

    return answers


def orders(seed: int, questions: int = 40, repeats: int = 2) -> list[tuple[str, ...]]:
    arms = [Arm(method, method, FakeEngine(named)) for method in METHODS]
    listed = [Question(str(number), "qa", "qa", ("?",)) for number in range(questions)]
    drawn = [block for repeat in range(repeats) for block in schedule_blocks(form_groups(listed, 1), arms, repeat, seed)]
    return [tuple(arm.label for arm in block.order) for block in drawn]


def test_orders_are_listed_the_seed() -> None:
    drawn = orders(seed=0)
    assert all(sorted(order) == sorted(METHODS) for order in drawn)
    assert drawn == orders(seed=0) and drawn != orders(seed=1)
    assert drawn[:40] != drawn[40:], "another repeat, another order"
    counts = Counter(order[0] for order in drawn)
    assert min(counts.values()) > 10, f"of 80 blocks each of three methods comes first in about 27: {counts}"


def test_the_order_does_not_depend_on_how_the_methods_were_listed() -> None:
    arms = [Arm(method, method, FakeEngine(named)) for method in METHODS]
    forward, backward = (list(schedule_blocks(form_groups(QUESTIONS, 1), listed, 0, 0)) for listed in (arms, arms[::-1]))
    assert forward == backward


def test_engines_of_a_method_follow_one_another_in_either_order() -> None:
    arms = [Arm(f"{method}{suffix}", method, FakeEngine(named)) for method in METHODS for suffix in ("", "@a", "@b")]
    listed = [Question(str(number), "qa", "qa", ("?",)) for number in range(60)]
    orders_ = [tuple(block.order) for block in schedule_blocks(form_groups(listed, 1), arms, 0, seed=0)]
    assert all(order[i].method == order[i + 1].method == order[i + 2].method for order in orders_ for i in (0, 3, 6))
    firsts = Counter(order[0].label for order in orders_)
    assert set(firsts) == {arm.label for arm in arms}, f"each of nine arms comes first in about 7 of 60 blocks: {firsts}"


def test_above_temperature_zero_every_repeat_draws_with_a_seed_of_its_own() -> None:
    """And every turn; the arms of a block share theirs."""
    arms = [Arm(method, method, FakeEngine(named)) for method in METHODS]
    greedy, warm = (Schedule(2, 7, "reference", Sampling(temperature=temperature)) for temperature in (0.0, 0.8))
    turns = [block for repeat in range(2) for block in schedule_blocks(form_groups(QUESTIONS, 1), arms, repeat, seed=7)]
    assert {greedy.get_sampling(block, block.group.questions[0]).seed for block in turns} == {0} and {
        greedy.get_seed(0),
        greedy.get_seed(1),
    } == {7}
    seeds = [warm.get_sampling(block, block.group.questions[0]).seed for block in turns]
    assert len(set(seeds)) == len(turns) and seeds == [warm.get_sampling(block, block.group.questions[0]).seed for block in turns]
    assert (warm.get_seed(0), warm.get_seed(1)) == (7, 8)


def test_each_arm_runs_each_turn_of_each_repeat_once(tmp_path: Path) -> None:
    tested = harness(tmp_path, FakeEngine(named))
    tested.run_schedule()
    trials = tested.run.read_trials()
    expected = {(method, repeat, *turn) for method in METHODS for repeat in range(2) for turn in TURNS}
    assert {trial.key for trial in trials} == expected and len(trials) == len(expected) == 24
    lines = (tmp_path / "trials.jsonl").read_text().splitlines()
    assert len(lines) == 24, "nothing was run twice"


def test_a_block_is_complete_before_the_next_begins_and_its_order_is_recorded(tmp_path: Path) -> None:
    tested = harness(tmp_path, FakeEngine(named))
    tested.run_schedule()
    trials = tested.run.read_trials()
    for start, (repeat, turn) in zip(range(0, 24, 3), [(repeat, turn) for repeat in range(2) for turn in TURNS], strict=True):
        block = trials[start : start + 3]
        assert {(trial.repeat, trial.question_id, trial.turn) for trial in block} == {(repeat, *turn)}
        assert [trial.order for trial in block] == [0, 1, 2]
        assert {trial.method for trial in block} == set(METHODS)


def test_the_record_holds_what_the_engine_said(tmp_path: Path) -> None:
    tested = harness(tmp_path, FakeEngine(named), seed=7)
    tested.run_schedule()
    first, second = (next(t for t in tested.run.read_trials() if t.key == ("pld", repeat, "q2", 0)) for repeat in range(2))
    assert (first.new_tokens, first.steps, first.target_forwards) == (4, 3, 4)
    assert (first.prefill_s, first.decode_s, first.finish_reason) == (0.25, 0.5, "eos")
    assert first.output_ids == list(b"pld!") and second.output_ids is None, "ids are kept of repeat 0 alone"
    assert first.output_sha256 == second.output_sha256 == hash_ids(b"pld!")
    assert (first.run_id, first.suite, first.task, first.seed, first.state) == (tmp_path.name, "fake-suite", "qa", 7, "cold")
    counts = {trial.method: trial.retokenised for trial in tested.run.read_trials()}
    assert counts == {"autoregressive": len("autoregressive!") - 1, "pld": None, "sps": None}


def test_turn_two_continues_from_autoregressives_answer(tmp_path: Path) -> None:
    engine = FakeEngine(named)
    harness(tmp_path, engine).run_schedule()
    prompts = {text for _, text in engine.log if "second?" in text}
    assert prompts == {"first?\nautoregressive!\nsecond?\n"}


def test_or_from_each_arms_own(tmp_path: Path) -> None:
    engine = FakeEngine(named)
    tested = harness(tmp_path, engine, context="own")
    tested.run_schedule()
    assert {(label, text) for label, text in engine.log if "second?" in text} == {
        (method, f"first?\n{method}!\nsecond?\n") for method in METHODS
    }
    noted = [(prompt.question_id, prompt.turn, prompt.method) for prompt in tested.run.read_prompts()]
    assert sorted(noted, key=str) == sorted(
        [(*turn, None) for turn in TURNS if turn[1] == 0] + [("q1", 1, m) for m in METHODS], key=str
    )


def test_turn_two_of_later_repeats_continues_from_repeat_0(tmp_path: Path) -> None:
    calls = Counter[str]()

    def drifting(label: str, prompt: list[int]) -> str:
        calls[label] += 1
        return f"{label}{calls[label]:03}"

    engine = FakeEngine(drifting)
    tested = harness(tmp_path, engine, repeats=3)
    tested.run_schedule()
    answer = bytes(next(t for t in tested.run.read_trials() if t.key == ("autoregressive", 0, "q1", 0)).output_ids or []).decode()
    assert {text for _, text in engine.log if "second?" in text} == {f"first?\n{answer}\nsecond?\n"}


def test_prompts_are_written_once_and_trials_point_at_them(tmp_path: Path) -> None:
    tested = harness(tmp_path, FakeEngine(named))
    tested.run_schedule()
    prompts = {(prompt.question_id, prompt.turn): prompt for prompt in tested.run.read_prompts()}
    assert len(tested.run.read_prompts()) == len(prompts) == len(TURNS)
    for trial in tested.run.read_trials():
        prompt = prompts[(trial.question_id, trial.turn)]
        assert (trial.prompt_sha256, trial.prompt_tokens) == (prompt.sha256, len(prompt.prompt_ids or []))
        assert prompt.sha256 == hash_ids(prompt.prompt_ids or [])


def test_texts_of_repeat_0_are_scored(tmp_path: Path) -> None:
    tested = harness(tmp_path, FakeEngine(named))
    tested.run_schedule()
    scores = {(row["method"], row["text"], row["score"]) for row in tested.run.read_texts()}
    assert scores == {("autoregressive", "autoregressive!", 1.0), ("pld", "pld!", 0.0), ("sps", "sps!", 0.0)}
    assert len(tested.run.read_texts()) == len(TURNS) * len(METHODS)


@pytest.mark.parametrize("error", [RuntimeError("out of\nmemory"), KeyError("x"), AssertionError(), CapacityError("no room")])
def test_a_failing_turn_is_an_error_row_and_the_run_continues(tmp_path: Path, error: Exception) -> None:
    tested = harness(tmp_path, FakeEngine(failing("pld", lambda text: text.startswith("only?"), error)))
    tested.run_schedule()
    failed = [trial for trial in tested.run.read_trials() if trial.failed]
    assert [trial.key for trial in failed] == [("pld", 0, "q2", 0), ("pld", 1, "q2", 0)]
    assert {trial.finish_reason for trial in failed} == {"capacity" if isinstance(error, CapacityError) else "error"}
    assert all(trial.decode_s is None and trial.new_tokens == 0 and trial.output_ids is None for trial in failed), "never a speed"
    assert failed[0].prompt_tokens == len("only?\n") and "\n" not in (failed[0].error or "\n")
    assert len(tested.run.read_trials()) == 24


def test_an_error_row_says_where_without_this_machines_folders(tmp_path: Path) -> None:
    broken = RuntimeError(f"cannot open {Path.home()}/secret")
    tested = harness(tmp_path, FakeEngine(failing("pld", lambda text: True, broken)))
    tested.run_schedule()
    message = next(trial.error or "" for trial in tested.run.read_trials() if trial.failed)
    assert message.startswith("RuntimeError: cannot open ~/secret (test_harness.py:") and str(Path.home()) not in message


def test_an_error_that_is_no_text_is_recorded_escaped(tmp_path: Path) -> None:
    tested = harness(tmp_path, FakeEngine(failing("pld", lambda text: True, ValueError("\ud800 \x1b[2J"))))
    tested.run_schedule()
    message = next(trial.error or "" for trial in tested.run.read_trials() if trial.failed)
    assert message.startswith(r"ValueError: \ud800 \x1b[2J (")


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"decode_s": -0.5}, "decode_s is -0.5"), ({"decode_s": float("nan")}, "decode_s is nan"), ({"accepted": [5]}, "accepted")],
)
def test_a_turn_that_cannot_have_happened_is_an_error_row(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    """Of an engine that miscounts: never a speed, and the run can be read again."""

    class Miscounting(FakeEngine):
        def generate(self, label: str, prompt: list[int], sampling: Sampling) -> Generation:
            out = super().generate(label, prompt, sampling)
            return replace(out, **changes) if label == "pld" else out

    tested = harness(tmp_path, Miscounting(named))
    tested.run_schedule()
    trials = tested.run.read_trials()
    assert {trial.method for trial in trials if trial.failed} == {"pld"} and len(trials) == 24
    assert said in next(trial.error or "" for trial in trials if trial.failed)


@pytest.mark.parametrize("context", ["reference", "own"])
def test_turn_two_after_a_failed_turn_one_is_an_error_row(tmp_path: Path, context: str) -> None:
    """A failing autoregressive turn takes the others' second turn with it only where they continue from its answer."""
    broken = failing("autoregressive", lambda text: text == "first?\n", RuntimeError("no"))
    engine = FakeEngine(broken)
    tested = harness(tmp_path, engine, context=context)
    tested.run_schedule()
    second = {
        trial.method: trial for trial in tested.run.read_trials() if (trial.question_id, trial.turn, trial.repeat) == ("q1", 1, 0)
    }
    lost = set(METHODS) if context == "reference" else {"autoregressive"}
    assert {method for method, trial in second.items() if trial.failed} == lost
    assert second["autoregressive"].error == "turn 1 of autoregressive failed, so turn 2 has no context"
    assert second["autoregressive"].prompt_tokens == 0 and second["autoregressive"].finish_reason == "error"
    assert len(tested.run.read_trials()) == 24, "the run continues"
    labels = {label for label, text in engine.log if "second?" in text}
    assert labels == set(METHODS) - lost, "no arm runs without a context"


def test_a_failing_warm_up_is_left_to_the_trial(tmp_path: Path) -> None:
    tested = harness(tmp_path, FakeEngine(failing("sps", lambda text: True, ValueError("vocabulary"))))
    tested.run_schedule()
    assert {trial.method for trial in tested.run.read_trials() if trial.failed} == {"sps"}


def test_every_arm_is_warmed_up_with_each_tasks_longest_prompt(tmp_path: Path) -> None:
    engine = FakeEngine(named)
    harness(tmp_path, engine).run_schedule()
    assert Counter(engine.warm_ups) == dict.fromkeys(METHODS, 2)
    prompts = [text for label, text in engine.log if text != "RESET"]
    assert engine.reserved >= max(map(len, prompts)), "memory for turn 2 is taken before the clock runs"


def test_arms_are_reset_at_the_start_of_each_repeat_and_never_inside(tmp_path: Path) -> None:
    engine = FakeEngine(named)
    harness(tmp_path, engine, repeats=3).run_schedule()
    at = [place for place, (label, text) in enumerate(engine.log) if (label, text) == ("pld", "RESET")]
    per_repeat = len(TURNS) * len(METHODS) + len(METHODS)
    assert at == [1, 1 + per_repeat, 1 + 2 * per_repeat]


def stopping(engine: FakeEngine, after: int) -> FakeEngine:
    """Let the process die after so many turns."""
    answers, left = engine.answers, [after]

    def mortal(label: str, prompt: list[int]) -> str:
        if not engine.warming:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
        return answers(label, prompt)

    engine.answers = mortal
    return engine


def begun(folder: Path, after: int, **settings: object) -> None:
    with pytest.raises(KeyboardInterrupt):
        harness(folder, stopping(FakeEngine(named, **settings), after)).run_schedule()  # type: ignore[arg-type]


@pytest.mark.parametrize("after", [0, 1, 2, 5, 11, 23])
def test_a_broken_run_resumes_where_it_stopped(tmp_path: Path, after: int) -> None:
    whole = harness(tmp_path / "whole", FakeEngine(named))
    whole.run_schedule()
    begun(tmp_path / "broken", after)
    engine = FakeEngine(named)
    tested = harness(tmp_path / "broken", engine)
    tested.run_schedule()
    assert len([text for _, text in engine.log if text != "RESET"]) == 24 - after, "nothing is run twice, nothing is lost"

    def parse(lines: str) -> list[dict[str, Any]]:
        return [{**json.loads(line), "run_id": None, "peak_memory_bytes": None} for line in lines.splitlines()]

    for file in ("trials.jsonl", "prompts.jsonl"):
        assert parse((tmp_path / "broken" / file).read_text()) == parse((tmp_path / "whole" / file).read_text()), file


def test_a_finished_run_warms_up_nothing(tmp_path: Path) -> None:
    harness(tmp_path, FakeEngine(named)).run_schedule()
    engine = FakeEngine(named)
    again = harness(tmp_path, engine)
    again.run_schedule()
    assert engine.warm_ups == [] and {text for _, text in engine.log} == {"RESET"}
    assert isinstance(again.watcher, Quiet) and again.watcher.began == [(24, 24)]


def test_a_warm_arms_broken_repeat_is_run_again_whole(tmp_path: Path) -> None:
    begun(tmp_path, after=18, warm=["sps"])  # repeat 0 is complete, repeat 1 half done
    kept = Counter((trial.method, trial.repeat) for trial in harness(tmp_path, FakeEngine(named)).run.read_trials())
    assert kept == {**{(method, 0): 4 for method in METHODS}, **{(method, 1): 2 for method in METHODS}}
    engine = FakeEngine(named, warm=["sps"])
    tested = harness(tmp_path, engine)
    tested.run_schedule()
    assert Counter(label for label, text in engine.log if text != "RESET") == {"autoregressive": 2, "pld": 2, "sps": 4}
    trials = tested.run.read_trials()
    assert len(trials) == 24 and {t.method: t.state for t in trials} == {"autoregressive": "cold", "pld": "cold", "sps": "warm"}


def test_more_repeats_and_more_methods_add_only_what_is_new(tmp_path: Path) -> None:
    harness(tmp_path, FakeEngine(named), methods=METHODS[:2]).run_schedule()
    engine = FakeEngine(named)
    tested = harness(tmp_path, engine, repeats=3)
    tested.run_schedule()
    assert Counter(label for label, text in engine.log if text != "RESET") == {"autoregressive": 4, "pld": 4, "sps": 12}
    assert len(tested.run.read_trials()) == 36 and len(tested.run.read_prompts()) == len(TURNS)
    assert {text for label, text in engine.log if "second?" in text} == {"first?\nautoregressive!\nsecond?\n"}


def test_fewer_repeats_than_there_are_change_nothing(tmp_path: Path) -> None:
    harness(tmp_path, FakeEngine(named)).run_schedule()
    before = (tmp_path / "trials.jsonl").read_bytes()
    fewer = harness(tmp_path, FakeEngine(named), methods=METHODS[:2], repeats=1)
    fewer.run_schedule()
    assert (tmp_path / "trials.jsonl").read_bytes() == before
    assert isinstance(fewer.watcher, Quiet) and fewer.watcher.began == [(8, 8)]


class Peer(FakeEngine):
    def has(self, label: str) -> bool:
        return label == "autoregressive"


def test_every_method_has_an_arm_on_the_first_engine_and_on_further_ones_that_know_it() -> None:
    first, second = FakeEngine(named), Peer(named)
    labels = [arm.label for arm in build_arms({"native": first, "hf": second}, METHODS)]
    assert labels == [*METHODS, "autoregressive@hf"]
    with pytest.raises(InputError, match="engine hf has no method pld, sps; of the chosen ones it has autoregressive"):
        build_arms({"hf": second, "native": first}, METHODS)
