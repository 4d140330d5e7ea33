"""The embedded suite: the same everywhere, split cleanly, scored exactly, spelt without loss by its tokenizer."""

import json
import os
import random
import subprocess
import sys
from collections import Counter
from functools import lru_cache
from itertools import islice
from pathlib import Path

import pytest
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from specbench.zoo.recipes.tokenizer import SPECIALS, VOCABULARY, build_tokenizer
from tasks.mini.dialogue import Dialogue
from tasks.mini.generator import WRITERS, generate_dialogues
from tasks.mini.suite import Mini
from tasks.question import MT_BENCH, TASK_OF_CATEGORY, Question

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "specbench" / "zoo" / "target"
every_task = pytest.mark.parametrize("task", list(WRITERS))
tokenizer = lru_cache(build_tokenizer)


@lru_cache
def suite(per_task: int = 16) -> Mini:
    return Mini(per_task)


@lru_cache
def stream(task: str, split: str, count: int, smallest: float = 1.0) -> list[Dialogue]:
    return list(islice(generate_dialogues(task, split, smallest=smallest), count))


# --- questions


def test_every_process_makes_the_same_questions() -> None:
    code = "from tasks.mini.suite import Mini; print(Mini(5).fingerprint, Mini(5, 'train', 3).fingerprint)"
    made = {
        subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"PYTHONHASHSEED": seed}, text=True)
        for seed in ("1", "2")
    }
    assert made == {f"{Mini(5).fingerprint} {Mini(5, 'train', 3).fingerprint}\n"}
    assert len({Mini(5).fingerprint, Mini(5, seed=1).fingerprint, Mini(6).fingerprint, Mini(5, "train").fingerprint}) == 4


@pytest.mark.parametrize("per_task", [1, 8, 16])
def test_each_task_has_exactly_per_task_questions(per_task: int) -> None:
    questions = suite(per_task).questions()
    assert Counter(question.task for question in questions) == dict.fromkeys(WRITERS, per_task)
    assert len({question.id for question in questions}) == len({question.turns for question in questions}) == 6 * per_task
    assert all(TASK_OF_CATEGORY[question.category] == question.task for question in questions)
    assert set(WRITERS) == set(TASK_OF_CATEGORY.values())


def test_conversations_have_two_turns_and_even_categories() -> None:
    questions = suite().questions()
    assert all(len(question.turns) == (2 if question.task == "mt_bench" else 1) for question in questions)
    conversations = Counter(question.category for question in questions if question.task == "mt_bench")
    assert conversations == dict.fromkeys(MT_BENCH, 16 / 8)


@every_task
def test_no_first_question_is_in_both_splits(task: str) -> None:
    train = {dialogue.turns[0] for size in (1.0, 0.3) for dialogue in stream(task, "train", 2000, size)}
    test = {dialogue.turns[0] for dialogue in stream(task, "test", 400)}
    assert not train & test and len(train) > 1000 and len(test) > 200


@every_task
def test_a_suite_is_the_beginning_of_the_stream(task: str) -> None:
    asked = {dialogue.turns for dialogue in stream(task, "test", 400)}
    assert all(question.turns in asked for question in suite().questions() if question.task == task)


# --- scores


def answered() -> list[tuple[Question, Dialogue]]:
    """Each question beside the dialogue it was made from."""
    made = {dialogue.turns: dialogue for task in WRITERS for dialogue in stream(task, "test", 400)}
    return [(question, made[question.turns]) for question in suite().questions()]


def test_reference_answers_score_one_and_corrupted_ones_zero() -> None:
    for question, dialogue in answered():
        for turn, exchange in enumerate(dialogue.exchanges):
            assert suite().score(question, turn, exchange.answer) == 1.0
            assert suite().score(question, turn, f"Well. {exchange.answer} Bye.") == 1.0, "style is free"
            for key in exchange.keys:
                assert exchange.answer.count(key) == 1
                for wrong in (key[:-2] + "#" + key[-1], "", key.replace(" ", "  ", 1)):
                    corrupted = exchange.answer.replace(key, wrong)
                    assert suite().score(question, turn, corrupted) == 0.0, f"{key!r} became {wrong!r}"


def test_keys_must_stand_in_order_and_turns_have_their_own() -> None:
    for question, dialogue in answered():
        for turn, exchange in enumerate(dialogue.exchanges):
            if len(exchange.keys) > 1:
                assert suite().score(question, turn, " ".join(exchange.keys)) == 1.0
                assert suite().score(question, turn, " ".join(exchange.keys[::-1])) == 0.0
            assert suite().score(question, turn, "") == 0.0
        if len(dialogue.exchanges) == 2:
            assert suite().score(question, 1, dialogue.exchanges[0].answer) == 0.0
        assert question.reference == json.dumps([list(exchange.keys) for exchange in dialogue.exchanges])


# --- length and spelling


def test_answers_are_long_enough_to_time() -> None:
    """An answer's length is its tokens and the end of sequence."""
    means = {}
    for task in WRITERS:
        answers = [exchange.answer for dialogue in stream(task, "test", 100) for exchange in dialogue.exchanges]
        means[task] = sum(len(ids) + 1 for ids in tokenizer()(answers).input_ids) / len(answers)
    assert sum(means.values()) / len(means) >= 100 and min(means.values()) > 70, f"tokens per answer: {means}"


def test_the_vocabulary_is_1024_pieces_and_holds_every_byte() -> None:
    pieces: PreTrainedTokenizerFast = tokenizer()
    assert len(pieces) == pieces.vocab_size == VOCABULARY == 1024
    assert pieces.convert_tokens_to_ids(SPECIALS) == [0, 1, 2, 3] and len(set(pieces.get_vocab().values())) == 1024
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    assert len(alphabet) == 256 and set(alphabet) <= set(pieces.get_vocab())


@pytest.mark.skipif(not (SHIPPED / "tokenizer.json").is_file(), reason="specbench/zoo/target holds no tokenizer.json yet")
def test_the_shipped_tokenizer_is_the_one_built_from_the_suite() -> None:
    shipped = AutoTokenizer.from_pretrained(SHIPPED)
    assert shipped.get_vocab() == tokenizer().get_vocab() and shipped.chat_template == tokenizer().chat_template


def random_text(rng: random.Random) -> str:
    """From every plane of Unicode and from ASCII; lone surrogates are no characters."""
    pools = [(0, 0x7F), (0, 0xFF), (0x100, 0xD7FF), (0xE000, 0xFFFF), (0x1F300, 0x1FAFF), (0x10000, 0x10FFFF)]
    return "".join(chr(rng.randint(*rng.choice(pools))) for _ in range(rng.randint(1, 30)))


SPECIAL_CASES = ["", " ", "  two  spaces ", "\n\t\r\0", "Ġ", "👩‍👩‍👧‍👦 🇸🇪 é é", "ß ſ İ ﬁ ①", "<s", "don't , you . !"]


def test_any_text_comes_back_unchanged() -> None:
    rng = random.Random(0)
    for text in [*SPECIAL_CASES, *(random_text(rng) for _ in range(500))]:
        ids = tokenizer()(text).input_ids
        assert tokenizer().decode(ids) == text and all(0 <= i < VOCABULARY for i in ids)


def test_the_suites_texts_come_back_unchanged() -> None:
    for _, dialogue in answered():
        for text in (text for exchange in dialogue.exchanges for text in (exchange.ask, exchange.answer)):
            assert tokenizer().decode(tokenizer()(text).input_ids) == text
