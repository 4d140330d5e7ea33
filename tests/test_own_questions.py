"""A target's own questions: drawn from its chat format, sifted, kept, answered, and trained on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from specbench import ROOT
from specbench.decoding.loop import Generation
from specbench.errors import InputError
from specbench.models.chat import Chat, render_prompt
from specbench.models.load import load_model, load_tokenizer
from specbench.models.target import Target
from specbench.models.texts import SIDE_BY_SIDE, make_anew
from specbench.setup.compose import compose_train
from specbench.setup.settings import QuestionSettings
from specbench.training import gathering, own_questions
from specbench.training.gathering import KeptBatches, asks_itself, find_texts
from specbench.training.own_questions import KnownTexts, OwnQuestions, find_user_turn
from tests.conftest import Cli

ZOO = ROOT / "specbench/zoo/target"


@pytest.fixture(scope="module")
def target() -> Target:
    tokenizer = load_tokenizer(str(ZOO), None, False)
    return Target("mini", load_model(str(ZOO), dtype="float32", device="cpu"), tokenizer, Chat("template"))


def encode(target: Target, text: str) -> list[int]:
    return list(target.tokenizer(text, add_special_tokens=False).input_ids)


def choose(count: int, avoid: list[str] | None = None, openings: list[str] | None = None) -> QuestionSettings:
    return QuestionSettings(count, openings or [""], 1.0, 1.0, 32, avoid or [])


def test_a_users_turn_is_what_the_messages_stand_in(target: Target) -> None:
    turn = find_user_turn(target)
    prompt = render_prompt(target.chat, [("Anything else?", None)], target.tokenizer)
    said = encode(target, "Anything else?")
    assert prompt[: len(turn.before)] == turn.before
    assert prompt[len(turn.before) :][: len(said)] == said and prompt[len(turn.before) + len(said)] == turn.end


def test_a_format_without_turns_is_refused(target: Target) -> None:
    with pytest.raises(InputError, match="data=self: the format plain does not mark a user's turn; expected data=FILE"):
        find_user_turn(replace(target, chat=Chat("plain")))
    with pytest.raises(InputError, match="the format vicuna does not mark a user's turn"):
        find_user_turn(replace(target, chat=Chat("vicuna")))


def continue_as(target: Target, monkeypatch: pytest.MonkeyPatch, batches: list[list[str]]) -> list[int]:
    """Let the target write these texts, the rest of a batch nothing; an ending of … stands for a text that is cut off."""
    numbers: list[int] = []
    left: Iterator[list[str]] = iter(batches)

    def write(_: Target, prompts: list[list[int]], sampling: Any) -> list[Generation]:
        numbers.append(sampling.seed)
        texts = next(left)
        outs = []
        for text in texts + [""] * (len(prompts) - len(texts)):
            cut = text.endswith("…")
            outs.append(Generation([*encode(target, text.rstrip("…")), 1], "length" if cut else "eos"))
        return outs

    monkeypatch.setattr(own_questions, "continue_prompts", write)
    return numbers


def test_only_fit_questions_are_kept_each_once(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    end = target.tokenizer.all_special_tokens[0]
    batches = [["Who is Anna?", "who is anna?", "No", f"A {end} inside", "It goes on…", "What is red?"], ["Where is Rome?"]]
    numbers = continue_as(target, monkeypatch, batches)
    told: list[int] = []
    found = OwnQuestions(target, choose(3), 7, make_anew).write(lambda what, done, *_: told.append(done))
    assert [question.turns for question in found] == [("Who is Anna?",), ("What is red?",), ("Where is Rome?",)]
    assert told == [2, 3] and len(set(numbers)) == 2, "every batch is drawn with a seed of its own"


def test_an_opening_is_part_of_the_question(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    continue_as(target, monkeypatch, [["Anna is", "red?"]])
    found = OwnQuestions(target, choose(2, openings=["Who ", "What is "]), 0, make_anew).write(lambda *_: None)
    assert [question.turns[0] for question in found] == ["Who Anna is", "What is red?"]


def test_a_target_that_writes_no_questions_is_refused(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = continue_as(target, monkeypatch, [["…"]] * 100)
    with pytest.raises(
        InputError, match=f"questions.count={SIDE_BY_SIDE}: only 0 of the questions that the target wrote are usable"
    ):
        OwnQuestions(target, choose(SIDE_BY_SIDE), 0, make_anew).write(lambda *_: None)
    assert len(numbers) == 4, "batches"


def test_what_shares_thirteen_tokens_with_a_test_question_is_known(target: Target, tmp_path: Path) -> None:
    long = "Once upon a time there was a king who had three daughters and a golden coat in Prague"
    rows = [{"task_id": 3, "prompt": long}, {"turns": ["Short one?", {"deep": "And a last one."}], "category": "qa"}]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    known = KnownTexts([str(tmp_path / "asked.jsonl")], target)
    assert known.hold(long) and known.hold(f"Tell me: {long[10:60]} in Rome") and known.hold("Short one?")
    assert known.hold("And a last one.") and not known.hold("A short one? No.") and not known.hold("Who wrote qa?")


@pytest.mark.parametrize("content", [b"{", b"\xff\n"])
def test_a_broken_file_of_test_questions_is_named(target: Target, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "asked.jsonl").write_bytes(content)
    with pytest.raises(InputError, match="questions.avoid: .*asked.jsonl:1: "):
        KnownTexts([str(tmp_path / "asked.jsonl")], target)
    with pytest.raises(InputError, match="nowhere"):
        KnownTexts([str(tmp_path / "nowhere.jsonl")], target)


def test_batches_are_made_once(tmp_path: Path) -> None:
    batches = KeptBatches(tmp_path)
    assert batches.keep(3, lambda: ["a"]) == ["a"]
    assert KeptBatches(tmp_path).keep(3, lambda: pytest.fail("made again")) == ["a"]


def overrides(tmp_path: Path, *more: str) -> list[str]:
    sizes = ("questions.count=130", "questions.max_new_tokens=24", "max_new_tokens=8", "held_out=4", "epochs=0.1")
    place = (f"cache_dir={tmp_path / 'cache'}", f"out={tmp_path / 'out'}", "target.dtype=float32", "target.device=cpu")
    return ["method=eagle", "data=self", 'questions.openings=["","Who"]', *sizes, *place, *more]


@pytest.mark.full
def test_a_stopped_gathering_resumes_and_serves_other_methods(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = gathering.KeptBatches.keep
    made: list[str] = []

    def keep(self: KeptBatches, number: int, make: Any) -> list[Any]:
        def count() -> list[Any]:
            if made == ["questions", "questions", "questions", "answers"]:
                made.append("stopped")
                raise KeyboardInterrupt
            made.append(self.folder.name)
            return list(make())

        return real(self, number, count)

    monkeypatch.setattr(KeptBatches, "keep", keep)
    monkeypatch.setattr(OwnQuestions, "_draw_batch", lambda _, batch: [f"Who is {batch}-{row}?" for row in range(SIDE_BY_SIDE)])
    stopped = cli("train", *overrides(tmp_path))
    assert stopped.status == 130 and "kept: the target's texts" in stopped.err, stopped.err
    assert cli("train", *overrides(tmp_path)).status == 0
    assert made == ["questions", "questions", "questions", "answers", "stopped", "answers", "answers"], made
    assert "the target wrote itself" in (tmp_path / "out/README.md").read_text()
    again = [override for override in overrides(tmp_path) if not override.startswith(("method=", "out="))]
    assert cli("train", "method=medusa", f"out={tmp_path / 'other'}", *again).status == 0
    assert len(made) == 7, "another method learns from the same texts"


def test_a_chosen_target_without_a_suite_asks_itself(tmp_path: Path) -> None:
    def compose(*given: str) -> bool:
        return asks_itself(compose_train(["method=eagle3", *given]))

    assert compose("target.path=/a/model") and compose("data=self") and compose("target=vicuna_7b")
    assert not compose() and not compose("target.path=/a/model", "suite=jsonl", "suite.path=x.jsonl")
    assert not compose("target.path=/a/model", "data=chats.jsonl")


def test_what_decides_the_texts_names_their_folder() -> None:
    def find(*given: str) -> Path:
        return find_texts(compose_train(["method=eagle3", "target.path=/a/model", *given]))

    assert find() == find("rate=0.1", "target.checkpoints.eagle3=x", "method.eagle3.depth=2")
    assert len({find(), find("seed=1"), find("questions.count=7"), find("max_new_tokens=9"), find("target.path=/b/model")}) == 5


def test_other_contents_in_the_same_place_are_other_texts(tmp_path: Path) -> None:
    model, asked = tmp_path / "model", tmp_path / "asked.jsonl"
    model.mkdir()
    found = set()
    for weights, questions in (("a", "{}"), ("b", "{}"), ("b", "{}\n{}")):
        (model / "config.json").write_text(weights)
        asked.write_text(questions)
        found.add(find_texts(compose_train(["method=eagle3", f"target.path={model}", f"questions.avoid=[{asked}]"])))
        gathering._hash_files.cache_clear()
    assert len(found) == 3
