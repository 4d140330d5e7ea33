"""Prompts, on a byte-level tokenizer built here: literal Vicuna text, one BOS, answers."""

from __future__ import annotations

import os

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from specbench.errors import InputError
from specbench.models.chat import Chat, count_retokenised, decode_answer, render_prompt
from tasks.question import read_questions

REAL = os.environ.get("SPEC_BENCH_QUESTIONS")
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)
CHAT = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def byte_tokenizer(bos: bool = True, template: str | None = None) -> PreTrainedTokenizerFast:
    """One token per byte after <s> = 0 and </s> = 1; encoding prepends <s> if `bos`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, bos_token="<s>" if bos else None, eos_token="</s>", chat_template=template
    )


def literal(format: str, turns: list[tuple[str, str | None]], tokenizer: PreTrainedTokenizerFast) -> str:
    text = tokenizer.decode(render_prompt(Chat(format), turns, tokenizer))
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize(
    "turns, expected",
    [
        ([("q1", None)], "USER: q1 ASSISTANT:"),
        ([("q1", "a1"), ("q2", None)], "USER: q1 ASSISTANT: a1</s>USER: q2 ASSISTANT:"),
        ([("q1", ""), ("q2", None)], "USER: q1 ASSISTANT:USER: q2 ASSISTANT:"),
    ],
    ids=["turn 1", "turn 2", "empty a1"],
)
def test_vicuna_is_rendered_literally(turns: list[tuple[str, str | None]], expected: str) -> None:
    assert literal("vicuna", turns, byte_tokenizer()) == f"<s>{SYSTEM} {expected}"


def test_the_end_of_a_vicuna_answer_is_the_eos_token() -> None:
    ids = render_prompt(Chat("vicuna"), [("q1", "a1"), ("q2", None)], byte_tokenizer())
    assert ids[0] == 0 and ids.count(0) == 1 and ids.count(1) == 1, "one BOS, and </s> as one token"


def test_the_template_does_not_double_the_bos() -> None:
    tokenizer = byte_tokenizer(template=CHAT)
    text = "<s>[user]q1</s>[assistant]a1</s>[user]q2</s>[assistant]"
    assert tokenizer("x").input_ids[0] == 0, "this tokenizer adds a BOS by itself"
    assert literal("template", [("q1", "a1"), ("q2", None)], tokenizer) == text


def test_plain_ends_every_text_with_a_line_break() -> None:
    assert literal("plain", [("q1", None)], byte_tokenizer()) == "<s>q1\n"
    assert literal("plain", [("q1", "a1"), ("q2", None)], byte_tokenizer(bos=False)) == "q1\na1\nq2\n"


def test_a_users_mistakes_are_named() -> None:
    with pytest.raises(InputError, match="no chat template"):
        render_prompt(Chat("template"), [("q", None)], byte_tokenizer())
    with pytest.raises(InputError, match="target.format=vicunia: expected vicuna"):
        render_prompt(Chat("vicunia"), [("q", None)], byte_tokenizer())
    with pytest.raises(InputError, match="target.format=zzz: expected auto, vicuna, template or plain"):
        decode_answer(Chat("zzz"), byte_tokenizer(), [])


@pytest.mark.parametrize("turns", [[], [("q", "a")], [("q", None), ("q", None)]])
def test_only_the_last_turn_is_open(turns: list[tuple[str, str | None]]) -> None:
    with pytest.raises(ValueError, match="the last must have None"):
        render_prompt(Chat("plain"), turns, byte_tokenizer())


@pytest.mark.parametrize(
    "text, expected",
    [
        (" Hello , world .\n</s>", "Hello , world ."),
        ("one</s>two", "one"),
        ("</s>late", "late"),
        ("a<s>b", "ab"),
        ("", ""),
    ],
    ids=["strip, no clean-up", "cut", "not cut at the start", "special tokens", "empty"],
)
def test_vicuna_answers_are_processed_like_spec_bench(text: str, expected: str) -> None:
    tokenizer = byte_tokenizer()
    assert decode_answer(Chat("vicuna"), tokenizer, tokenizer(text, add_special_tokens=False).input_ids) == expected


def test_other_answers_only_lose_their_special_tokens() -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer(" a .\n</s>", add_special_tokens=False).input_ids
    assert decode_answer(Chat("template"), tokenizer, ids) == decode_answer(Chat("plain"), tokenizer, ids) == " a .\n"


@pytest.mark.parametrize("text, count", [("", 0), ("é!", 3)])
def test_retokenised_counts_one_less_as_spec_bench_does(text: str, count: int) -> None:
    assert count_retokenised(byte_tokenizer(bos=True), text) == count
    assert count_retokenised(byte_tokenizer(bos=False), text) == count - 1, "also where there is no BOS"


@pytest.mark.skipif(not REAL, reason="SPEC_BENCH_QUESTIONS is not set to Spec-Bench's question.jsonl")
def test_spec_bench_survives_the_tokenizer_without_losing_a_character() -> None:
    tokenizer = byte_tokenizer()
    for question in read_questions(str(REAL)):
        for turn in question.turns:
            assert literal("vicuna", [(turn, None)], tokenizer) == f"<s>{SYSTEM} USER: {turn} ASSISTANT:"
            ids = tokenizer(turn, add_special_tokens=False).input_ids
            assert decode_answer(Chat("plain"), tokenizer, ids) == turn
