"""Render conversations as prompt token ids and decode answers to text, outside the clock.

`vicuna` is Spec-Bench's rendering (FastChat's vicuna_v1.1), `template` the tokenizer's chat template, `plain` the texts alone;
`auto` is the template where there is one, else plain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from specbench.errors import InputError, format_error, suggest_choices

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

# (user, assistant) per turn; the last assistant is None, to be generated
Turns = Sequence[tuple[str, str | None]]

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
VICUNA_STOP = "</s>"


@dataclass(frozen=True)
class ChatFormat:
    """Renders a conversation as prompt ids (T,), and new ids as the text in the next turn's context."""

    prompt: Callable[[Turns, Tokenizer], list[int]]
    answer: Callable[[Tokenizer, Sequence[int]], str]


def pick_format(format: str, tokenizer: Tokenizer) -> str:
    """Return the format that `auto` means for a tokenizer, any other as it is."""
    return format if format != "auto" else "template" if tokenizer.chat_template else "plain"


def render_prompt(format: str, turns_so_far: Turns, tokenizer: Tokenizer) -> list[int]:
    """Return the prompt ids (T,) of the last turn.

    Raises InputError for an unknown format, for a chat template that is missing or fails, and for a prompt without a token.
    """
    if [answer is None for _, answer in turns_so_far] != [False] * (len(turns_so_far) - 1) + [True]:
        raise ValueError("every turn but the last must have an answer, and the last must have None")
    ids = _get_format(format).prompt(turns_so_far, tokenizer)
    if not ids:
        raise InputError(f"target.format={format}: the prompt of {len(turns_so_far)} turns has no token; expected one or more")
    return ids


def decode_answer(format: str, tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Return the text of new token ids, without special tokens."""
    return _get_format(format).answer(tokenizer, ids)


def count_retokenised(tokenizer: Tokenizer, text: str) -> int:
    """Return Spec-Bench's baseline token count: the re-encoded text minus one for BOS, even if the tokenizer adds none."""
    return len(_encode(tokenizer, text)) - 1


def format_vicuna(turns: Turns) -> str:
    """Format as FastChat's ADD_COLON_TWO: an empty answer gets neither space nor `</s>`; no trailing space."""
    text = VICUNA_SYSTEM + " "
    for user, answer in turns:
        text += f"USER: {user} ASSISTANT:"
        if answer:
            text += f" {answer}{VICUNA_STOP}"
    return text


def format_plain(turns: Turns) -> str:
    """Format as user and assistant texts, each followed by a line break."""
    return "".join(f"{text}\n" for turn in turns for text in turn if text is not None)


def _apply_template(turns: Turns, tokenizer: Tokenizer) -> list[int]:
    """Encode without adding special tokens, as transformers does: the template writes its own BOS."""
    if not tokenizer.chat_template:
        raise InputError("target.format is template, but the tokenizer has no chat template; try target.format=plain")
    messages = [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
        if text is not None
    ]
    try:
        return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))
    except Exception as error:  # of any type: a template is a program
        raise InputError(f"the chat template of {tokenizer.name_or_path}: {format_error(error)}") from None


def _decode_vicuna(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Post-process as Spec-Bench: cut at `</s>` unless it comes first, drop special tokens, strip."""
    text = _decode(tokenizer, ids, skip_special_tokens=False)
    if (end := text.find(VICUNA_STOP)) > 0:
        text = text[:end]
    for token in tokenizer.all_special_tokens:
        text = text.replace(token, "")
    return text.strip()


def _decode(tokenizer: Tokenizer, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
    """Decode without cleaning up spaces, which would change the next turn's prompt."""
    text = tokenizer.decode(
        list(ids),
        skip_special_tokens=skip_special_tokens,
        spaces_between_special_tokens=False,
        clean_up_tokenization_spaces=False,
    )
    assert isinstance(text, str)
    return text


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Encode with the tokenizer's default special tokens: BOS if it has one."""
    return list(tokenizer(text).input_ids)


FORMATS = {
    "vicuna": ChatFormat(lambda turns, tokenizer: _encode(tokenizer, format_vicuna(turns)), _decode_vicuna),
    "template": ChatFormat(_apply_template, _decode),
    "plain": ChatFormat(lambda turns, tokenizer: _encode(tokenizer, format_plain(turns)), _decode),
}


def _get_format(name: str) -> ChatFormat:
    if name not in FORMATS:
        raise InputError(f"target.format={name}: expected {suggest_choices(name, ['auto', *FORMATS])}")
    return FORMATS[name]
