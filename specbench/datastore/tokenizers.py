"""A tokenizer's fingerprint: a store is only good for the tokenizer that made its ids."""

import hashlib
import json
from typing import Any

from transformers import PreTrainedTokenizerBase


def hash_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 of the vocabulary, added tokens among it, and of the merges where the tokenizer has some.

    Not of its whole JSON, which other versions of the tokenizers library write in another way; so two tokenizers that differ in
    nothing but how they clean and split text before it are taken for one.
    """
    told = [sorted(tokenizer.get_vocab().items()), _read_merges(tokenizer)]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _read_merges(tokenizer: Any) -> list[list[str]]:
    """Pairs by rank; the JSON has them as pairs or with a space between."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not hasattr(backend, "to_str"):
        return []
    merges = json.loads(backend.to_str())["model"].get("merges") or []
    return [list(pair) if isinstance(pair, list) else pair.split(" ", 1) for pair in merges]
