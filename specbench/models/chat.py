"""Render conversations as prompt token ids and decode answers to text, outside the clock.

`vicuna` is Spec-Bench's rendering (FastChat's vicuna_v1.1), `template` the tokenizer's chat template, `plain` the texts alone;
`auto` is the template where there is one, else plain.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, TemplateError, meta

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
GIVEN = {"messages", "add_generation_prompt", "raise_exception", "strftime_now"} | {
    f"{x}_token" for x in ("bos", "eos", "pad", "unk")
}
MARKS = re.compile(r"{%-?\s*(end)?generation\s*-?%}")  # transformers' own tag, around answers
_PARSER = Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=False)  # of templates; rendering is transformers'


@dataclass(frozen=True)
class ChatFormat:
    """Renders a conversation as prompt ids (T,), and new ids as the text in the next turn's context."""

    prompt: Callable[[Turns, Tokenizer, Chat], list[int]]
    answer: Callable[[Tokenizer, Sequence[int]], str]


@dataclass(frozen=True)
class Chat:
    """How conversations become prompts: a key of FORMATS, and for a chat template its arguments and the system message."""

    format: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    system: str | None = None


def choose_chat(chat: Chat, tokenizer: Tokenizer) -> Chat:
    """Return the chat with `auto` replaced. Raises InputError for what its format does not take or its template does not read."""
    format = chat.format if chat.format != "auto" else "template" if tokenizer.chat_template else "plain"
    if format != "template" and (chat.arguments or chat.system is not None):
        raise InputError(f"target.format={format}: only a chat template takes target.template and target.system")
    for name in chat.arguments:
        _check_argument(name, tokenizer)
    chosen = replace(chat, format=format)
    if chat.system is not None and _render_greeting(chosen, tokenizer) == _render_greeting(
        replace(chosen, system=None), tokenizer
    ):
        raise InputError("target.system: the chat template ignores the system message")
    return chosen


def describe_chat(chat: Chat, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return what determines the prompts besides the questions, as run.json records it next to their fingerprints."""
    text = tokenizer.get_chat_template() if chat.format == "template" else None
    sha256 = hashlib.sha256(text.encode()).hexdigest() if text is not None else None
    return {"format": chat.format, "template_sha256": sha256, "arguments": dict(chat.arguments), "system": chat.system}


def _render_greeting(chat: Chat, tokenizer: Tokenizer) -> list[int]:
    return render_prompt(chat, [("Hello", None)], tokenizer)


def _check_argument(name: str, tokenizer: Tokenizer) -> None:
    """Raise InputError for an argument that the template never reads: it would silently have no effect."""
    if name in GIVEN:
        raise InputError(f"target.template.{name}: specbench sets this argument itself")
    try:
        read = meta.find_undeclared_variables(_PARSER.parse(MARKS.sub("", tokenizer.get_chat_template())))
    except (TemplateError, ValueError):  # which rendering explains
        return
    own = sorted(read - GIVEN)
    if name not in own:
        raise InputError(f"target.template.{name}: the chat template does not read it; it reads {', '.join(own) or 'none'}")


def render_prompt(chat: Chat, turns_so_far: Turns, tokenizer: Tokenizer) -> list[int]:
    """Return the prompt ids (T,) of the last turn.

    Raises InputError for an unknown format, for a chat template that is missing or fails, and for a prompt without a token.
    """
    if [answer is None for _, answer in turns_so_far] != [False] * (len(turns_so_far) - 1) + [True]:
        raise ValueError("every turn but the last must have an answer, and the last must have None")
    ids = _get_format(chat.format).prompt(turns_so_far, tokenizer, chat)
    if not ids:
        raise InputError(
            f"target.format={chat.format}: the prompt of {len(turns_so_far)} turns has no token; expected one or more"
        )
    return ids


def decode_answer(chat: Chat, tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Return the text of new token ids, without special tokens."""
    return _get_format(chat.format).answer(tokenizer, ids)


def decode_whole(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Return the text of token ids with special tokens: what stop strings are looked for in."""
    return _decode(tokenizer, ids, skip_special_tokens=False)


def count_retokenised(tokenizer: Tokenizer, text: str) -> int:
    """Return Spec-Bench's baseline token count: the re-encoded text's, minus one for BOS even if the tokenizer adds none."""
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


def _apply_template(turns: Turns, tokenizer: Tokenizer, chat: Chat) -> list[int]:
    """Encode without adding special tokens, as transformers does: the template writes its own BOS."""
    if not tokenizer.chat_template:
        raise InputError("target.format is template, but the tokenizer has no chat template; try target.format=plain")
    messages = [] if chat.system is None else [{"role": "system", "content": chat.system}]
    messages += [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
        if text is not None
    ]
    try:
        return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False, **chat.arguments))
    except Exception as error:  # of any type: a template is a program
        raise InputError(f"the chat template of {tokenizer.name_or_path}: {format_error(error)}") from None


def _decode_vicuna(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Post-process as Spec-Bench: cut at `</s>` unless it comes first, drop special tokens, strip."""
    text = decode_whole(tokenizer, ids)
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
    "vicuna": ChatFormat(lambda turns, tokenizer, _: _encode(tokenizer, format_vicuna(turns)), _decode_vicuna),
    "template": ChatFormat(_apply_template, _decode),
    "plain": ChatFormat(lambda turns, tokenizer, _: _encode(tokenizer, format_plain(turns)), _decode),
}


def _get_format(name: str) -> ChatFormat:
    if name not in FORMATS:
        raise InputError(f"target.format={name}: expected {suggest_choices(name, ['auto', *FORMATS])}")
    return FORMATS[name]
