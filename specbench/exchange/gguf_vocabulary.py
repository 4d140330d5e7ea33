"""A tokenizer as GGUF holds it, so that llama.cpp loads the file, takes token ids and gives token ids and their text.

Byte-level tokenizers become GGUF's `gpt2`, those like Llama 2's (pieces with byte fallback) its `llama`. Whether llama.cpp splits
a text into the same ids is another matter: see `Vocabulary.splits_alike`.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from transformers import PreTrainedTokenizerBase

from specbench.errors import InputError
from specbench.exchange.gguf_layout import Setting

ENDS = ("eos", "eot", "eom")  # the keys in which a file names tokens that end an answer
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}
SPLITS = {"gpt-2": [BYTE_LEVEL], "smollm": [DIGITS, BYTE_LEVEL]}  # llama.cpp's names for ways to split a text before merging


class Kind(IntEnum):
    """Kinds of tokens, by llama.cpp's numbers."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    ADDED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Vocabulary:
    """The tokenizer as a file describes it. splits_alike: llama.cpp is told to split texts as the tokenizer does."""

    settings: list[Setting]
    splits_alike: bool


def read_vocabulary(tokenizer: PreTrainedTokenizerBase, size: int, eos_ids: Sequence[int]) -> Vocabulary:
    """Return the vocabulary of a model with `size` embeddings. Raises InputError for one that GGUF cannot hold."""
    if not 1 <= len(eos_ids) <= len(ENDS):
        found = f"{len(eos_ids)} end-of-sequence tokens" if eos_ids else "no end-of-sequence token"
        raise InputError(f"export gguf: the model has {found}; expected 1 to {len(ENDS)}")
    if not tokenizer.is_fast:
        raise InputError("export gguf: its tokenizer is not from the tokenizers library; expected a tokenizer.json")
    plain = json.loads(tokenizer.backend_tokenizer.to_str())
    model, steps = plain["model"], list(_iter_steps(plain["pre_tokenizer"]))
    pieces = model["vocab"].items() if isinstance(model["vocab"], dict) else ((row[0], i) for i, row in enumerate(model["vocab"]))
    tokens: dict[int, tuple[str, Kind]] = {token: (text, Kind.NORMAL) for text, token in pieces}
    for added in plain["added_tokens"]:
        tokens[added["id"]] = (added["content"], Kind.CONTROL if added["special"] else Kind.ADDED)
    if max(tokens) >= size:
        raise InputError(f"export gguf: its tokenizer has {max(tokens) + 1:,} tokens, the model embeddings for {size:,}")
    split = None
    if any(step["type"] == "ByteLevel" for step in steps):
        split = _name_split(plain, steps)
        more: list[Setting] = [("string", "tokenizer.ggml.model", "gpt2"), ("string", "tokenizer.ggml.pre", split or "default")]
        more += [("array", "tokenizer.ggml.merges", list_merges(model))]
    elif model["type"] == "BPE" and model["byte_fallback"]:
        more = _list_pieces(tokens, model, size)
    else:
        raise InputError(f"export gguf: its tokenizer ({model['type']}) is neither byte-level nor one with byte fallback")
    filled = [tokens.get(token, (f"[PAD{token}]", Kind.UNUSED)) for token in range(size)]
    more += [("array", "tokenizer.ggml.tokens", [text for text, _ in filled])]
    more += [("array", "tokenizer.ggml.token_type", [int(kind) for _, kind in filled])]
    return Vocabulary([*more, *_list_specials(tokenizer, eos_ids)], split is not None)


def list_merges(model: dict[str, Any]) -> list[str]:
    """Return the merges of a BPE, or for a Unigram every way to join two of its tokens into a third, the most probable first.

    llama.cpp refuses a file without merges. A Unigram's make it split a text into tokens of the vocabulary, if not into the same.
    """
    if model["type"] == "BPE":
        return [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    scores = dict(model["vocab"])
    ordered = sorted(scores, key=lambda text: -scores[text])
    ways = ((text[:cut], text[cut:]) for text in ordered for cut in range(1, len(text)))
    return [f"{left} {right}" for left, right in ways if left in scores and right in scores]


def _iter_steps(step: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """Yield the steps of a pre-tokenizer."""
    if step is not None and step["type"] == "Sequence":
        for inner in step["pretokenizers"]:
            yield from _iter_steps(inner)
    elif step is not None:
        yield step


def _name_split(plain: dict[str, Any], steps: list[dict[str, Any]]) -> str | None:
    """Return llama.cpp's name for how a byte-level BPE splits a text; None for a way without a name here."""
    known = [{key: value for key, value in step.items() if key != "trim_offsets"} for step in steps]
    usual = plain["normalizer"] is None and plain["model"]["type"] == "BPE" and not plain["model"].get("ignore_merges")
    return next((name for name, split in SPLITS.items() if usual and split == known), None)


def _list_pieces(tokens: dict[int, tuple[str, Kind]], model: dict[str, Any], size: int) -> list[Setting]:
    """Return the settings of a tokenizer like Llama 2's, and mark its bytes. A token's score is the lower, the later it came."""
    for token, (text, kind) in tokens.items():
        if kind is Kind.NORMAL and len(text) == 6 and text.startswith("<0x"):
            tokens[token] = (text, Kind.BYTE)
        elif text == model["unk_token"]:
            tokens[token] = (text, Kind.UNKNOWN)
    scores = [-float(token) if token in tokens and tokens[token][1] is Kind.NORMAL else 0.0 for token in range(size)]
    return [("string", "tokenizer.ggml.model", "llama"), ("array", "tokenizer.ggml.scores", scores)]


def _list_specials(tokenizer: PreTrainedTokenizerBase, eos_ids: Sequence[int]) -> list[Setting]:
    named = {**dict(zip(ENDS, eos_ids, strict=False)), "bos": tokenizer.bos_token_id}
    named |= {"unknown": tokenizer.unk_token_id, "padding": tokenizer.pad_token_id}
    settings: list[Setting] = [
        ("uint32", f"tokenizer.ggml.{name}_token_id", token) for name, token in named.items() if token is not None
    ]
    begins = tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    settings += [("bool", "tokenizer.ggml.add_bos_token", begins)]
    if isinstance(tokenizer.chat_template, str) and tokenizer.chat_template:
        settings += [("string", "tokenizer.chat_template", tokenizer.chat_template)]
    return settings
