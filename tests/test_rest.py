"""REST against prefixes counted in dictionaries: the same nodes in the same order, by our rule and by the authors'."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from methods.rest import Rest, build_random_store
from specbench.datastore.build import build_datastore
from specbench.datastore.prefixes import TIE_SEED, Prefixes
from specbench.datastore.store import Datastore
from specbench.decoding.tree import DraftTree
from specbench.errors import InputError
from tests.methods_under_test import target_of
from tests.stores import chunks_of, documents, occurrences, queries
from tests.tiny import VOCABULARY

OURS: dict[str, Any] = {"sample": "spread", "occurrences": 9, "nodes": 12, "cut": "none", "filler": None}
AUTHORS: dict[str, Any] = {"sample": "first", "occurrences": 6, "nodes": 14, "cut": "cost", "filler": 100}
SETTINGS = {"ours": OURS, "authors": AUTHORS, "wide": AUTHORS | {"nodes": 64}}
LONGEST, SHORTEST, DEPTH = 8, 2, 5
Path_ = tuple[int, ...]


def drafter_of(store: Path | str, architecture: str = "llama", **settings: Any) -> Rest:
    drafter = Rest(str(store), longest=LONGEST, shortest=SHORTEST, depth=DEPTH, **{**OURS, **settings})
    drafter.bind(target_of(architecture))
    return drafter


def looked_at(store: Datastore, tokens: Sequence[int], depth: int, settings: dict[str, Any]) -> list[Path_] | None:
    """The continuations that the rules choose; None when no ending stands anywhere."""
    for length in range(min(LONGEST, len(tokens)), SHORTEST - 1, -1):
        places = occurrences(store, tokens[-length:])
        if any(places):
            break
    else:
        return None
    behind = [
        [tuple(ids[at + length : at + length + depth]) for at in found]
        for ids, found in zip(chunks_of(store), places, strict=True)
    ]
    most = settings["occurrences"]
    if settings["sample"] == "first":
        return [path for paths in behind for path in paths[:most]]
    every = list(chain.from_iterable(behind))
    taken = min(most, len(every))
    return [every[i * len(every) // taken] for i in range(taken)]


def drafted(paths: list[Path_], settings: dict[str, Any]) -> list[Path_]:
    """The tree's paths, counted and cut one by one."""
    counts = Counter(path[:depth] for path in paths for depth in range(1, len(path) + 1))
    if settings["cut"] == "cost":
        return authors_cut(counts, settings["nodes"])
    kept = sorted(counts, key=lambda path: (-counts[path], len(path), path))[: settings["nodes"]]
    return sorted(kept, key=lambda path: (len(path), path))


def authors_cut(counts: Counter[Path_], cost: int) -> list[Path_]:
    """methods.md 2.9, steps 5 to 7, with lots for their chance."""
    every = sorted(counts, key=lambda path: (len(path), path))
    lots = dict(zip(every, np.random.default_rng(TIE_SEED).permutation(len(every)), strict=True))
    kept = sorted(every, key=lambda path: (-counts[path], lots[path]))[:cost]
    while sum(len(set(path)) for path in kept) > cost:
        kept.remove(max(kept, key=lambda path: (len(set(path)), lots[path])))
    closed = {path[:depth] for path in kept for depth in range(1, len(path) + 1)}
    return sorted(closed, key=lambda path: (len(path), path))[:cost]


def paths_of(tree: DraftTree) -> list[Path_]:
    paths: list[Path_] = [()]
    for token, parent in list(zip(tree.tokens.tolist(), tree.parents.tolist(), strict=True))[1:]:
        paths.append((*paths[parent], token))
    return paths[1:]


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(("vocabulary", "chunk_tokens"), [(4, 1000), (4, 90), (VOCABULARY, 1000), (VOCABULARY, 200)])
def test_the_tree_is_that_of_plain_counting(tmp_path: Path, name: str, vocabulary: int, chunk_tokens: int) -> None:
    texts = documents(vocabulary, 60, 16)
    folder = build_datastore(texts, tmp_path / "store", vocabulary, None, "a test", chunk_tokens=chunk_tokens)
    store, settings = Datastore.open(str(folder)), SETTINGS[name]
    drafter = drafter_of(folder, **settings)
    sizes, nothing = Counter[int](), 0
    for number, query in enumerate(queries(store, vocabulary, 200)):
        budget = (0, 1, 3, 50)[number % 4]
        tree = drafter.draft(query, budget)
        assert int(tree.tokens[0]) == query[-1] and tree.depth <= budget
        paths = looked_at(store, query, min(budget, DEPTH), settings) if budget else None
        found = drafted(paths, settings) if paths else []
        if not found:
            nothing += 1
            assert paths_of(tree) == ([(100,)] if name in ("authors", "wide") and budget else [])
        else:
            assert paths_of(tree) == found
        sizes[len(tree)] += 1
    assert nothing and len(sizes) > 4, sizes


def test_a_cut_leaves_no_orphan() -> None:
    """Tokens that repeat make deep prefixes as cheap as shallow ones."""
    rng = random.Random(0)
    for _ in range(300):
        rows = sorted([rng.randrange(3) for _ in range(DEPTH)] for _ in range(rng.randint(1, 30)))
        found, most = Prefixes.of(np.array(rows)), rng.randint(1, 20)
        for cut in (found.keep_most_frequent(most), found.cut_by_cost(most)):
            paths = {tuple(cut.rows[row, : depth + 1]) for row, depth in zip(cut.row, cut.depth, strict=True)}
            assert len(paths) == len(cut) <= most and all(path[:-1] in paths for path in paths if len(path) > 1)


def test_a_single_continuation_survives_the_authors_cut_whole(tmp_path: Path) -> None:
    """It costs 55 of 64; two unrelated ones, 110, are cut to a depth of 7 and 8: 28 + 36 = 64."""
    text = list(range(2, 40))
    one = drafter_of(build_datastore([text], tmp_path / "one", VOCABULARY, None, "a test"), **AUTHORS | {"nodes": 64})
    one.depth = 10
    assert paths_of(one.draft([5, 6], 50)) == [tuple(range(7, 7 + depth)) for depth in range(1, 11)]
    both = [text, [5, 6, *range(60, 80)]]
    two = drafter_of(build_datastore(both, tmp_path / "two", VOCABULARY, None, "a test"), **AUTHORS | {"nodes": 64})
    two.depth = 10
    depths = Counter(path[0] for path in paths_of(two.draft([5, 6], 50)))
    assert sorted(depths.values()) == [7, 8]


def test_a_chain_is_offered_as_one(tmp_path: Path) -> None:
    tree = drafter_of(build_datastore([list(range(2, 40))], tmp_path / "one", VOCABULARY, None, "a test")).draft([5, 6], 50)
    assert tree.linear and tree.tokens.tolist() == [6, 7, 8, 9, 10, 11]


def test_the_random_store_is_the_same_every_time() -> None:
    first, again = build_random_store(VOCABULARY), build_random_store(VOCABULARY)
    assert first.about == again.about and first.about.vocabulary <= VOCABULARY


def test_what_rest_refuses(tmp_path: Path) -> None:
    known = build_datastore([[VOCABULARY]], tmp_path / "larger", VOCABULARY + 1, None, "a test")
    cases: list[tuple[Path | str, dict[str, Any], str]] = [
        (known, {}, f"holds ids up to {VOCABULARY}, but the target has a vocabulary of {VOCABULARY}"),
        (tmp_path / "nowhere", {}, "no datastore at "),
    ]
    for store, settings, expected in cases:
        with pytest.raises(InputError, match=expected):
            drafter_of(store, **settings)
    with pytest.raises(InputError, match="this target names no datastore: set method.LABEL.datastore to a folder or random"):
        Rest(None, longest=LONGEST, shortest=SHORTEST, depth=DEPTH, **OURS)


def test_a_filler_that_the_target_does_not_have_is_refused() -> None:
    with pytest.raises(InputError, match=f"filler={VOCABULARY}: the target has tokens 0 to {VOCABULARY - 1}"):
        drafter_of("random", filler=VOCABULARY)
