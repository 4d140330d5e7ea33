"""A store of texts to draft from: token ids and their suffix arrays, mapped from disk and never copied.

A store is a folder. store.json describes it. Each chunk has two files: `0.ids`, its documents one after the other, 2 or 4 bytes
per id, big-endian, so that comparing bytes compares ids; and `0.suffixes`, its suffix array, 4 bytes per token, little-endian.
"""

import json
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from specbench import __version__
from specbench.datastore.integrity import find_largest_id, hash_ids, is_suffix_array
from specbench.errors import InputError
from specbench.models.place import find_local_folder
from specbench.records.files import read_object

VERSION = 1
INFO_FILE = "store.json"
SUFFIX_BYTES = 4
LARGEST = 1 << 40  # of a size
Ids = NDArray[np.int64]
Sample = Literal["spread", "first"]


@dataclass(frozen=True, kw_only=True)
class StoreInfo:
    """store.json. tokenizer: its fingerprint, None for any; vocabulary: all ids are below it; sha256: of all ids."""

    version: int = VERSION
    tokenizer: str | None
    vocabulary: int
    width: int  # bytes per id
    chunks: list[int]  # tokens of each
    documents: int
    sha256: str
    source: str
    specbench: str | None = __version__

    def write(self, folder: Path) -> None:
        (folder / INFO_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def pick_width(vocabulary: int) -> int:
    """Return bytes per id."""
    return 2 if vocabulary <= 1 << 16 else 4


def encode_ids(ids: Sequence[int] | Ids, width: int) -> bytes:
    """Encode token ids as a store holds them."""
    return np.asarray(ids).astype(f">u{width}").tobytes()


class Chunk:
    """Concatenated documents and their suffix array, in two buffers: mapped files or bytes."""

    def __init__(self, ids: bytes | mmap, suffixes: bytes | mmap, width: int) -> None:
        self.width = width
        self._bytes = ids  # sliced in the search: ten times faster on a mapped file than on an array
        self._places = memoryview(suffixes).cast("i")
        self.ids = np.frombuffer(ids, f">u{width}")
        self.suffixes = np.frombuffer(suffixes, "<i4")

    def find_range(self, query: bytes) -> tuple[int, int]:
        """Return [low, high) of the suffixes that begin with these ids; empty if they do not occur."""

        def read_prefix(place: int) -> bytes:
            start = place * self.width
            return self._bytes[start : start + len(query)]

        low = bisect_left(self._places, query, key=read_prefix)
        if low == len(self._places) or read_prefix(self._places[low]) != query:
            return low, low
        return low, bisect_right(self._places, query, low, key=read_prefix)

    def read_after(self, rows: Ids, length: int, depth: int) -> Ids:
        """Return (m, depth) ids that follow `length` tokens at rows (m,) of the suffix array; -1 after the end of the chunk."""
        places = self.suffixes[rows].astype(np.int64)[:, None] + np.arange(length, length + depth)
        following: Ids = self.ids[np.minimum(places, len(self.ids) - 1)].astype(np.int64)
        following[places >= len(self.ids)] = -1
        return following


class StoreMatch(NamedTuple):
    """The occurrences of a query's longest known suffix: its length in tokens, and a range in every chunk that has it."""

    length: int
    ranges: list[tuple[Chunk, int, int]]

    @property
    def places(self) -> int:
        return sum(high - low for _, low, high in self.ranges)


class Datastore:
    """Chunks and their store.json. name: the path that the user gave."""

    def __init__(self, name: str, about: StoreInfo, chunks: Sequence[Chunk]) -> None:
        self.name, self.about, self.chunks = name, about, list(chunks)

    @staticmethod
    def open(path: str) -> "Datastore":
        """Map a store's files and check them. Raises InputError for no store, another version's, or one that was changed."""
        folder = find_local_folder(path)
        if folder is None:
            raise InputError(f"no datastore at {path}: no such folder; build one with specbench datastore build")
        about = _read_info(folder, path)
        chunks = [_open_chunk(folder, number, tokens, about.width) for number, tokens in enumerate(about.chunks)]
        _check_content(folder, about)
        return Datastore(path, about, chunks)

    @property
    def tokens(self) -> int:
        return sum(self.about.chunks)

    def holds(self, ids: Sequence[int]) -> bool:
        """Return whether the store contains these ids in sequence."""
        query = self._encode_known(ids)
        return len(query) == len(ids) * self.about.width and bool(_find_ranges(self.chunks, query))

    def find(self, query: Sequence[int], longest: int, shortest: int) -> StoreMatch | None:
        """Return the occurrences of the query's longest suffix of `shortest` to `longest` tokens, or None.

        A shorter suffix occurs wherever a longer one does, so the length is found by bisection.
        """
        known, width = self._encode_known(query[-longest:]), self.about.width
        best, chunks = None, self.chunks
        low, high = shortest, len(known) // width
        while low <= high:
            length = (low + high) // 2
            if ranges := _find_ranges(chunks, known[-length * width :]):
                best = StoreMatch(length, ranges)
                chunks = [chunk for chunk, _, _ in ranges]
                low = length + 1
            else:
                high = length - 1
        return best

    def read_continuations(self, match: StoreMatch, depth: int, most: int, sample: Sample) -> Ids:
        """Return (m, depth) ids after occurrences, rows in lexicographic order; -1 after the end of a chunk.

        sample: `spread` takes `most` occurrences, evenly spaced in their order; `first` the first `most` of every chunk, as
        REST's authors do.
        """
        chosen = _take_spread(match, most) if sample == "spread" else _take_first(match, most)
        pairs = zip(match.ranges, chosen, strict=True)
        rows = [chunk.read_after(indices, match.length, depth) for (chunk, _, _), indices in pairs]
        return rows[0] if len(rows) == 1 else _sort_rows(np.concatenate(rows))

    def _encode_known(self, ids: Sequence[int]) -> bytes:
        """Encode the ids after the last one outside the store's vocabulary, which two bytes might not hold."""
        query = np.asarray(ids, np.int64)
        unknown = np.flatnonzero(query >= self.about.vocabulary)
        return encode_ids(query[unknown[-1] + 1 :] if len(unknown) else query, self.about.width)


def _find_ranges(chunks: Sequence[Chunk], query: bytes) -> list[tuple[Chunk, int, int]]:
    ranges = [(chunk, *chunk.find_range(query)) for chunk in chunks]
    return [(chunk, low, high) for chunk, low, high in ranges if low < high]


def _take_first(match: StoreMatch, most: int) -> list[Ids]:
    return [np.arange(low, min(high, low + most)) for _, low, high in match.ranges]


def _take_spread(match: StoreMatch, most: int) -> list[Ids]:
    """Return evenly spaced rows of all ranges together, per range."""
    taken = min(most, match.places)
    places = np.arange(taken) * match.places // taken
    starts = np.cumsum([0] + [high - low for _, low, high in match.ranges])
    cuts = np.searchsorted(places, starts)
    parts = zip(match.ranges, starts, cuts, cuts[1:], strict=False)
    return [places[begin:end] - start + low for (_, low, _), start, begin, end in parts]


def _sort_rows(rows: Ids) -> Ids:
    """Sort rows lexicographically: compared as bytes, by a sort that profits from sorted runs."""
    as_bytes = np.ascontiguousarray((rows + 1).astype(">u4")).view(f"S{4 * rows.shape[1]}").ravel()
    return rows[np.argsort(as_bytes, kind="stable")]


def _read_info(folder: Path, path: str) -> StoreInfo:
    if not (folder / INFO_FILE).is_file():
        raise InputError(f"{path} is not a datastore: it has no {INFO_FILE}")
    fields = read_object(folder / INFO_FILE)
    try:
        version = fields["version"]
        if version == VERSION:
            return _check_info(StoreInfo(**fields))
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}/{INFO_FILE}: cannot be read: {error!r}") from None
    raise InputError(f"{path} is a datastore of version {version}; expected version {VERSION}: build it again")


def _check_info(about: StoreInfo) -> StoreInfo:
    """Raise ValueError for impossible sizes, and for fields that should be text but are not."""
    sizes = [about.vocabulary, about.documents, *about.chunks]
    if about.width not in (2, 4) or not about.chunks or not all(type(size) is int and 0 < size < LARGEST for size in sizes):
        raise ValueError(f"width {about.width}, vocabulary {about.vocabulary}, chunks {about.chunks}")
    texts = (about.sha256, about.source, about.tokenizer or "", about.specbench or "")
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("sha256, source, tokenizer and specbench: expected texts")
    return about


def _check_content(folder: Path, about: StoreInfo) -> None:
    """Raise InputError if ids or suffixes are not those that store.json describes; checks each state of the files once."""
    files = [folder / name for number in range(len(about.chunks)) for name in list_chunk_files(number, about.width)]
    states = tuple((str(file.resolve()), file.stat().st_mtime_ns) for file in files)
    if wrong := _find_damage(states, about.sha256, about.vocabulary, about.width):
        raise InputError(f"{folder}: {wrong}; build the datastore again")


@lru_cache(maxsize=8)
def _find_damage(states: tuple[tuple[str, int], ...], sha256: str, vocabulary: int, width: int) -> str:
    """Return what is wrong with a store's files, pairs of ids and suffixes; empty if nothing is."""
    names = [name for name, _ in states]
    chunks = [np.memmap(name, f">u{width}", "r") for name in names[::2]]
    if (actual := hash_ids(chunks)) != sha256:
        return f"the sha256 of its ids is {actual[:12]}…, but {INFO_FILE} says {sha256[:12]}…"
    if (largest := find_largest_id(chunks)) >= vocabulary:
        return f"holds the id {largest}, but {INFO_FILE} says that all are below {vocabulary}"
    for ids, name in zip(chunks, names[1::2], strict=True):
        if not is_suffix_array(ids, np.memmap(name, "<i4", "r")):
            return f"{Path(name).name} is not the suffix array of its ids"
    return ""


def _open_chunk(folder: Path, number: int, tokens: int, width: int) -> Chunk:
    ids, suffixes = (_map_file(folder / name, tokens * size) for name, size in list_chunk_files(number, width).items())
    return Chunk(ids, suffixes, width)


def list_chunk_files(number: int, width: int) -> dict[str, int]:
    """Return a chunk's file names with their bytes per token."""
    return {f"{number}.ids": width, f"{number}.suffixes": SUFFIX_BYTES}


def _map_file(path: Path, size: int) -> mmap:
    """Raise InputError for a missing file, or one of another size."""
    try:
        if not path.is_file():
            raise InputError(f"{path}: cannot be read: No such file; build the datastore again")
        with path.open("rb") as file:
            if (actual := path.stat().st_size) != size:
                raise InputError(f"{path}: {actual} bytes, expected {size}: the datastore is incomplete; build it again")
            return mmap(file.fileno(), 0, access=ACCESS_READ)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}; build the datastore again") from None
