"""Datastores that were changed after they were built are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specbench.datastore import integrity
from specbench.datastore.build import build_datastore, sort_suffixes
from specbench.datastore.integrity import is_suffix_array
from specbench.datastore.store import Datastore, encode_ids
from specbench.errors import InputError
from tests.conftest import Refuse, Tiny
from tests.stores import documents
from tests.test_bad_files import replace_by_fifo

SUFFIXES = "0.suffixes is not the suffix array of its ids"


def overwrite(folder: Path, file: str, change: Callable[[bytearray], Any]) -> None:
    content = bytearray((folder / file).read_bytes())
    change(content)
    (folder / file).write_bytes(content)


def fill(content: bytearray) -> None:
    content[:] = b"\xff" * len(content)


def zero(content: bytearray) -> None:
    content[:] = bytes(len(content))


def swap(content: bytearray) -> None:
    content[:8] = content[4:8] + content[:4]


def repeat(content: bytearray) -> None:
    content[:4] = content[4:8]


def describe(folder: Path, **changes: Any) -> None:
    (folder / "store.json").write_text(json.dumps({**json.loads((folder / "store.json").read_text()), **changes}))


SPOILT: dict[str, tuple[Callable[[Path], Any], str]] = {
    "suffixes-filled": (lambda folder: overwrite(folder, "0.suffixes", fill), SUFFIXES),
    "suffixes-zero": (lambda folder: overwrite(folder, "0.suffixes", zero), SUFFIXES),
    "suffixes-swapped": (lambda folder: overwrite(folder, "0.suffixes", swap), SUFFIXES),
    "suffix-twice": (lambda folder: overwrite(folder, "0.suffixes", repeat), SUFFIXES),
    "suffixes-of-another-chunk": (
        lambda folder: (folder / "1.suffixes").write_bytes((folder / "1.suffixes").read_bytes()[::-1]),
        "1.suffixes is not the suffix array of its ids",
    ),
    "id-changed": (lambda folder: overwrite(folder, "0.ids", lambda ids: ids.__setitem__(5, ids[5] ^ 1)), "store.json says"),
    "another-sha256": (lambda folder: describe(folder, sha256="0" * 64), "store.json says 000000000000"),
    "smaller-vocabulary": (lambda folder: describe(folder, vocabulary=20), "store.json says that all are below 20"),
    "sha256-number": (lambda folder: describe(folder, sha256=3), "expected texts"),
    "tokenizer-list": (lambda folder: describe(folder, tokenizer=[1]), "expected texts"),
    "chunks-number": (lambda folder: describe(folder, chunks=3), "store.json: cannot be read"),
    "chunks-negative": (lambda folder: describe(folder, chunks=[-1]), "store.json: cannot be read"),
    "documents-true": (lambda folder: describe(folder, documents=True), "store.json: cannot be read"),
    "width": (lambda folder: describe(folder, width=8), "store.json: cannot be read"),
    "unknown-key": (lambda folder: describe(folder, zzz=8), "store.json: cannot be read"),
    "info-list": (lambda folder: (folder / "store.json").write_text("[]"), "store.json: not a JSON object"),
    "info-nested": (lambda folder: (folder / "store.json").write_text("[" * 100_000), "store.json: nested too deeply"),
    "info-twice": (
        lambda folder: (folder / "store.json").write_text((folder / "store.json").read_text().replace("{", '{"width": 4,')),
        "store.json: the key 'width' is given twice",
    ),
    "info-missing": (lambda folder: (folder / "store.json").unlink(), "is not a datastore"),
    "ids-missing": (lambda folder: (folder / "0.ids").unlink(), "0.ids: cannot be read: No such file"),
    "ids-fifo": (
        lambda folder: replace_by_fifo(folder / "0.ids"),
        "0.ids: cannot be read: No such file",
    ),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_store_that_was_changed_is_refused(name: str, tmp_path: Path) -> None:
    folder = build_datastore(documents(60, 40, 16), tmp_path / "store", 60, None, "a test", chunk_tokens=200)
    Datastore.open(str(folder))
    spoil, said = SPOILT[name]
    spoil(folder)
    with pytest.raises(InputError, match=said) as error:
        Datastore.open(str(folder))
    assert "\n" not in str(error.value)


def test_the_case_through_the_command(refuse: Refuse, tiny: Tiny, tmp_path: Path) -> None:
    folder = build_datastore([[1, 2, 3, 4, 5]], tmp_path / "store", 1024, None, "a test")
    overwrite(folder, "0.suffixes", fill)
    said = refuse("run", *tiny.overrides("task=qa", "method=[rest]", "target.datastore=store", "out=results/x"))
    assert said.endswith(f"store: {SUFFIXES}; build the datastore again")


@st.composite
def mutate(draw: st.DrawFn, content: bytes) -> bytes:
    """The content with some bytes replaced, left out or added."""
    start = draw(st.integers(0, len(content)))
    end = draw(st.integers(start, min(len(content), start + 12)))
    return content[:start] + draw(st.binary(max_size=12)) + content[end:]


@lru_cache
def intact() -> dict[str, bytes]:
    with TemporaryDirectory() as folder:
        made = build_datastore(documents(60, 12, 16), Path(folder) / "store", 60, None, "a test", chunk_tokens=100)
        return {file.name: file.read_bytes() for file in made.iterdir()}


def check_mutant(data: st.DataObject) -> None:
    """It is the same store, or refused in one line."""
    files = dict(intact())
    name = data.draw(st.sampled_from(sorted(files)))
    files[name] = data.draw(mutate(files[name]))
    with TemporaryDirectory() as folder:
        for file, content in files.items():
            (Path(folder) / file).write_bytes(content)
        try:
            store = Datastore.open(folder)
        except InputError as error:
            assert "\n" not in str(error)
            return
    assert [chunk.ids.tobytes() for chunk in store.chunks] == [intact()["0.ids"], intact()["1.ids"]][: len(store.chunks)]
    assert [chunk.suffixes.tobytes() for chunk in store.chunks] == [intact()["0.suffixes"], intact()["1.suffixes"]][
        : len(store.chunks)
    ]


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_any_damage_is_found(data: st.DataObject) -> None:
    check_mutant(data)


@pytest.mark.slow
@settings(max_examples=4000, deadline=None)
@given(data=st.data())
def test_thousands_of_damages_are_found(data: st.DataObject) -> None:
    check_mutant(data)


@given(ids=st.lists(st.integers(0, 3), min_size=1, max_size=60), block=st.integers(1, 70), data=st.data())
def test_only_the_suffix_array_passes(ids: list[int], block: int, data: st.DataObject) -> None:
    """Against sorting all suffixes, with any other permutation of them, whatever the size of a block."""
    tokens = np.array(ids, ">u2")
    right = np.concatenate(list(sort_suffixes(encode_ids(ids, 2), 2)))
    assert right.tolist() == sorted(range(len(ids)), key=lambda start: ids[start:])
    other = np.array(
        data.draw(st.permutations(range(len(ids))) | st.lists(st.integers(-2, 70), min_size=len(ids), max_size=len(ids)))
    )
    before, integrity.BLOCK = integrity.BLOCK, block
    try:
        assert is_suffix_array(tokens, right)
        assert is_suffix_array(tokens, other.astype("<i4")) == (other.tolist() == right.tolist())
    finally:
        integrity.BLOCK = before
