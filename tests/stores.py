"""Small datastores for tests, and what obviously stands in them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from specbench.datastore.build import build_datastore
from specbench.datastore.store import Datastore, StoreMatch


def documents(vocabulary: int, count: int, longest: int, seed: int = 0) -> list[list[int]]:
    """Random documents; half of them repeat pieces of earlier ones, so that long matches exist."""
    rng = random.Random(seed)
    made: list[list[int]] = []
    for number in range(count):
        document = [rng.randrange(vocabulary) for _ in range(rng.randint(1, longest))]
        if made and number % 2:
            other = rng.choice(made)
            start = rng.randrange(len(other))
            document += other[start : start + 20]
        made.append(document)
    return made


def store_of(folder: Path, texts: Sequence[Sequence[int]], vocabulary: int, chunk_tokens: int) -> Datastore:
    return Datastore.open(str(build_datastore(texts, folder, vocabulary, None, "a test", chunk_tokens=chunk_tokens)))


def chunks_of(store: Datastore) -> list[list[int]]:
    """The ids of every chunk."""
    return [chunk.ids.tolist() for chunk in store.chunks]


def occurrences(store: Datastore, wanted: Sequence[int]) -> list[list[int]]:
    """Per chunk, where the ids stand, in the order of what begins there: every place is looked at."""
    size, wanted = len(wanted), list(wanted)
    found = [[at for at in range(len(ids)) if ids[at : at + size] == wanted] for ids in chunks_of(store)]
    return [sorted(places, key=lambda at: ids[at:]) for places, ids in zip(found, chunks_of(store), strict=True)]


def places(match: StoreMatch | None) -> list[int]:
    """Occurrences that a match has, over all chunks."""
    return [at for chunk, low, high in match.ranges for at in chunk.suffixes[low:high].tolist()] if match else []


def queries(store: Datastore, vocabulary: int, count: int, seed: int = 1) -> Iterator[list[int]]:
    """Pieces of the store, some of them begun or ended by other tokens, and random ones."""
    rng = random.Random(seed)
    for number in range(count):
        ids = rng.choice(chunks_of(store))
        start = rng.randrange(len(ids))
        piece = ids[start : start + rng.randint(1, 12)]
        other = [rng.randrange(vocabulary) for _ in range(rng.randint(0, 6))]
        yield [[*other, *piece], [*piece, *other[:1]], other or piece][number % 3]
