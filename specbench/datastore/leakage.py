"""Checks of datastores before a run: the tokenizer they were built for, and whether they contain the run's questions."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from transformers import PreTrainedTokenizerBase

from specbench.datastore.store import Datastore
from specbench.datastore.tokenizers import hash_tokenizer
from specbench.decoding.drafter import Drafter
from specbench.errors import InputError
from specbench.models.texts import GRAM
from tasks.question import Question

LEAKED = 0.5  # a question with at least this share of its grams in a store counts as leaked


@runtime_checkable
class ReadsDatastore(Protocol):
    """A drafter with a datastore."""

    datastore: Datastore | None


def iter_datastores(drafter: Drafter) -> Iterator[Datastore]:
    """Yield the drafter's own datastores and those of its parts."""
    for part in drafter.iter_family():
        if isinstance(part, ReadsDatastore) and part.datastore is not None:
            yield part.datastore


def check_tokenizers(drafters: Mapping[str, Drafter], tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise InputError for a store built for another tokenizer than the target's."""
    stores = [(label, store) for label, drafter in drafters.items() for store in iter_datastores(drafter)]
    expected = hash_tokenizer(tokenizer) if stores else None
    for label, store in stores:
        if store.about.tokenizer not in (None, expected):
            raise InputError(
                f"method.{label}: the datastore {store.name} was built for another tokenizer than the target's"
                f" ({store.about.tokenizer[:12]}, not {str(expected)[:12]}); build one with specbench datastore build"
            )


def measure_leakage(
    drafters: Mapping[str, Drafter], questions: Sequence[Question], tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """Return for run.json, by method, its datastores and how many questions they contain."""
    by_method: dict[str, Any] = {}
    shares: dict[str, list[float]] = {}
    for label, drafter in drafters.items():
        for store in iter_datastores(drafter):
            if store.about.sha256 not in shares:
                shares[store.about.sha256] = [measure_share(question, store, tokenizer) for question in questions]
            by_method.setdefault(label, []).append(_describe_store(store, shares[store.about.sha256]))
    return by_method


def _describe_store(store: Datastore, shares: list[float]) -> dict[str, Any]:
    leaked = sum(share >= LEAKED for share in shares)
    return {
        "name": store.name,
        "source": store.about.source,
        "sha256": store.about.sha256,
        "documents": store.about.documents,
        "tokens": store.tokens,
        "questions": len(shares),
        "leaked": leaked,
        "mean_share": sum(shares) / len(shares),
    }


def measure_share(question: Question, store: Datastore, tokenizer: PreTrainedTokenizerBase) -> float:
    """Return the share of a question's grams that the store contains."""
    turns = [tokenizer(turn, add_special_tokens=False).input_ids for turn in question.turns]
    held = [store.holds(gram) for gram in extract_grams(turns)]
    return sum(held) / len(held) if held else 0.0


def extract_grams(turns: list[list[int]]) -> list[list[int]]:
    """Return all runs of GRAM tokens inside a turn, or the longest turn if there are none.

    Other short turns are ignored: "Make it shorter." occurs everywhere.
    """
    grams = [ids[start : start + GRAM] for ids in turns for start in range(len(ids) - GRAM + 1)]
    return grams or [max(turns, key=len)]
