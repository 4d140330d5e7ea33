"""Datastores before a run: made for the target's tokenizer? And do they hold the very questions that are asked?"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from transformers import PreTrainedTokenizerBase

from specbench.datastore.store import Datastore
from specbench.datastore.tokenizers import hash_tokenizer
from specbench.decoding.drafter import Drafter
from specbench.errors import InputError
from tasks.question import Question

GRAM = 13  # tokens: long enough not to stand there by chance (Brown et al. 2020, appendix C)
LEAKED = 0.5  # share of its grams from which on a question counts as one that the store holds


@runtime_checkable
class ReadsDatastore(Protocol):
    """A drafter that drafts from a store of texts."""

    datastore: Datastore | None


def iter_datastores(drafter: Drafter) -> Iterator[Datastore]:
    """Its own and those of the drafters it is made of."""
    for part in drafter.iter_family():
        if isinstance(part, ReadsDatastore) and part.datastore is not None:
            yield part.datastore


def check_tokenizers(drafters: Mapping[str, Drafter], tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises InputError for a store that was made for another tokenizer than the target's."""
    stores = [(label, store) for label, drafter in drafters.items() for store in iter_datastores(drafter)]
    own = hash_tokenizer(tokenizer) if stores else None
    for label, store in stores:
        if store.about.tokenizer not in (None, own):
            raise InputError(
                f"method.{label}: the datastore {store.name} was made for another tokenizer than the target's"
                f" ({store.about.tokenizer[:12]}, not {str(own)[:12]}); specbench datastore build makes one for it"
            )


def measure_leakage(
    drafters: Mapping[str, Drafter], questions: Sequence[Question], tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """For run.json: of every method with datastores, what they are and how many of the questions they hold."""
    found: dict[str, Any] = {}
    shares: dict[str, list[float]] = {}
    for label, drafter in drafters.items():
        for store in iter_datastores(drafter):
            if store.about.sha256 not in shares:
                shares[store.about.sha256] = [measure_share(question, store, tokenizer) for question in questions]
            found.setdefault(label, []).append(_describe_store(store, shares[store.about.sha256]))
    return found


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
    """How much of a question's own grams stands in the store."""
    held = [
        store.holds(gram)
        for gram in extract_grams([tokenizer(turn, add_special_tokens=False).input_ids for turn in question.turns])
    ]
    return sum(held) / len(held) if held else 0.0


def extract_grams(turns: list[list[int]]) -> list[list[int]]:
    """All runs of GRAM tokens inside a turn; of a question without any, its longest turn.

    A short turn beside others says nothing: "Make it shorter." stands everywhere.
    """
    found = [ids[start : start + GRAM] for ids in turns for start in range(len(ids) - GRAM + 1)]
    return found or [max(turns, key=len)]
