"""What a user may give as a prompt: a text, the messages of a chat, or token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from specbench.errors import InputError, show_value
from specbench.models.chat import render_prompt
from specbench.models.target import Target

Prompt = str | Sequence[Mapping[str, str]] | Sequence[int]
EXPECTED = "expected a text, a list of messages or a list of token ids"
ROLES = ("user", "assistant")


def encode_prompt(prompt: Prompt, target: Target) -> list[int]:
    """Return prompt ids (T,). Texts and messages are rendered by the target's chat format; ids are taken as they are.

    Raises InputError for anything else, and for an id that the target does not have.
    """
    ids = _encode(prompt, target)
    for token in ids:
        if not 0 <= token < target.model.vocabulary:
            raise InputError(f"prompt: {token} is no token id; expected 0 to {target.model.vocabulary - 1}")
    return ids


def _encode(prompt: Any, target: Target) -> list[int]:
    if isinstance(prompt, str):
        return render_prompt(target.chat, [(prompt, None)], target.tokenizer)
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes):
        raise InputError(f"prompt: {EXPECTED}, found {type(prompt).__name__}")
    if not prompt:
        raise InputError(f"prompt: {EXPECTED}, found an empty list")
    if all(isinstance(message, Mapping) for message in prompt):
        return render_prompt(target.chat, _pair_messages(prompt), target.tokenizer)
    if odd := next((token for token in prompt if type(token) is not int), None):
        hint = "; give one prompt at a time" if isinstance(odd, (str, list)) else ""
        raise InputError(f"prompt: {EXPECTED}, found a list with {type(odd).__name__}{hint}")
    return list(prompt)


def _pair_messages(messages: Sequence[Mapping[str, str]]) -> list[tuple[str, str | None]]:
    """Return the turns (user, assistant) of a chat, the last of which has no answer yet."""
    for place, message in enumerate(messages):
        _check_message(message, f"prompt[{place}]", ROLES[place % 2])
    if len(messages) % 2 == 0:
        raise InputError("prompt: its last message is the assistant's; expected the user's")
    texts: list[str | None] = [*(message["content"] for message in messages), None]
    return [(str(user), answer) for user, answer in zip(texts[::2], texts[1::2], strict=True)]


def _check_message(message: Mapping[str, str], place: str, role: str) -> None:
    if set(message) != {"role", "content"} or not isinstance(message["content"], str):
        raise InputError(f"{place}: expected a message {{'role': …, 'content': text}}, found {show_value(dict(message))}")
    if message["role"] == "system":
        raise InputError(f"{place}: the system's message belongs to the target: load_target(…, system='…')")
    if message["role"] != role:
        raise InputError(f"{place}: role {show_value(message['role'])}; expected {role}: user and assistant take turns")
