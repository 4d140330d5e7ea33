"""A tokenizer's fingerprint: a store fits only the tokenizer that made its ids."""

import hashlib
import json
from typing import Any

from transformers import PreTrainedTokenizerBase


def hash_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the sha256 of the vocabulary, added tokens included, and of the merges if there are any.

    The tokenizer's whole JSON would change with the version of the tokenizers library. So tokenizers that differ only in how they
    normalise and split text have the same fingerprint.
    """
    content = [sorted(tokenizer.get_vocab().items()), _read_merges(tokenizer)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _read_merges(tokenizer: Any) -> list[list[str]]:
    """Return the merges as pairs, by rank; the JSON has pairs or strings with a space."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not hasattr(backend, "to_str"):
        return []
    merges = json.loads(backend.to_str())["model"].get("merges") or []
    return [list(pair) if isinstance(pair, list) else pair.split(" ", 1) for pair in merges]
