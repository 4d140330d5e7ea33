"""The tokens that two tokenizers share: a draft model with another vocabulary drafts these (Timor et al. 2025, section 4)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from specbench.errors import InputError
from specbench.models.load import load_tokenizer

NONE = -1  # no token


@dataclass(frozen=True)
class TokenMap:
    """to_target (D,) int64: the target's id of each of the draft model's, or NONE. rewrite: the draft model's ids of a text.

    tokenizers: the target's and the draft model's.
    """

    to_target: Tensor
    rewrite: Callable[[Sequence[int]], list[int]]
    tokenizers: tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase] | None = None


def build_token_map(target: PreTrainedTokenizerBase, draft: PreTrainedTokenizerBase) -> TokenMap:
    """Match tokens by their strings; a leading space is written as the target's tokenizer writes it. Raises InputError.

    If several of the draft model's tokens match the same token of the target, the first is used.
    """
    known, own = target.get_vocab(), draft.get_vocab()
    sign, other = _find_space_sign(target), _find_space_sign(draft)
    to_target = torch.full((1 + max(own.values()),), NONE)
    free = dict(known)
    for token, number in sorted(own.items(), key=lambda item: item[1]):
        spelt = sign + token[len(other) :] if sign and other and token.startswith(other) else token
        to_target[number] = free.pop(spelt, NONE)
    if (to_target == NONE).all():
        raise InputError("the draft model's tokenizer shares no token with the target's")

    def rewrite(ids: Sequence[int]) -> list[int]:
        text = target.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=True)
        found: list[int] = draft.encode(text, add_special_tokens=False)
        return found

    return TokenMap(to_target, rewrite, (target, draft))


def _find_space_sign(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return how a leading space is written, or nothing."""
    ids = tokenizer.encode(" ", add_special_tokens=False)
    token = tokenizer.convert_ids_to_tokens(ids)[0] if ids else ""
    return token[:1]


def load_token_map(target: Mapping[str, Any], draft: Mapping[str, Any] | None) -> TokenMap:
    """Load both tokenizers. target, draft: with path, and perhaps revision and trust_remote_code. Raises InputError."""
    if draft is None or not draft.get("path") or not target.get("path"):
        raise InputError("the target and the draft model need their own tokenizers: set target.draft.path")
    tokenizers = [
        load_tokenizer(one["path"], one.get("revision"), one.get("trust_remote_code", False)) for one in (target, draft)
    ]
    return build_token_map(*tokenizers)
