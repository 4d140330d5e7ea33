"""A store of texts to draft from: token ids and their suffix arrays, mapped from disk and never copied.

A store is a folder: store.json says what it holds; of every chunk `0.ids` are its documents one behind the other, 2 or 4 bytes an
id, big-endian, so that comparing bytes compares ids, and `0.suffixes` is its suffix array, 4 bytes a token, little-endian.
"""

import json
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from specbench.errors import InputError
from specbench.models.load import find_local_folder

VERSION = 1
INFO_FILE = "store.json"
SUFFIX_BYTES = 4
Ids = NDArray[np.int64]
Sample = Literal["spread", "first"]


@dataclass(frozen=True, kw_only=True)
class StoreInfo:
    """store.json. tokenizer: its fingerprint, None where any will do; vocabulary: all ids are below; sha256: of all ids."""

    version: int = VERSION
    tokenizer: str | None
    vocabulary: int
    width: int  # bytes per id
    chunks: list[int]  # tokens of each
    documents: int
    sha256: str
    source: str
    specbench: str | None

    def write(self, folder: Path) -> None:
        (folder / INFO_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def pick_width(vocabulary: int) -> int:
    """Bytes per id."""
    return 2 if vocabulary <= 1 << 16 else 4


def encode_ids(ids: Sequence[int] | Ids, width: int) -> bytes:
    """Token ids as a store holds them."""
    return np.asarray(ids).astype(f">u{width}").tobytes()


class Chunk:
    """Documents one behind the other and the order of all their suffixes, in any two buffers: mapped files, or bytes."""

    def __init__(self, ids: bytes | mmap, suffixes: bytes | mmap, width: int) -> None:
        self.width = width
        self._bytes = ids  # sliced in the search: a mapped file gives bytes at once, an array takes ten times as long
        self._places = memoryview(suffixes).cast("i")
        self.ids = np.frombuffer(ids, f">u{width}")
        self.suffixes = np.frombuffer(suffixes, "<i4")

    def find_range(self, wanted: bytes) -> tuple[int, int]:
        """[low, high) of the suffixes that begin with these ids; empty where they do not stand."""

        def beginning(place: int) -> bytes:
            start = place * self.width
            return self._bytes[start : start + len(wanted)]

        low = bisect_left(self._places, wanted, key=beginning)
        if low == len(self._places) or beginning(self._places[low]) != wanted:
            return low, low
        return low, bisect_right(self._places, wanted, low, key=beginning)

    def read_after(self, rows: Ids, length: int, depth: int) -> Ids:
        """(m, depth) ids that follow `length` tokens at these rows of the suffix array (m,); -1 behind the end of the chunk."""
        at = self.suffixes[rows].astype(np.int64)[:, None] + np.arange(length, length + depth)
        found = self.ids[np.minimum(at, len(self.ids) - 1)].astype(np.int64)
        found[at >= len(self.ids)] = -1
        return found


class StoreMatch(NamedTuple):
    """Where the longest known ending of a query stands: its length in tokens, and a range of every chunk that has it."""

    length: int
    ranges: list[tuple[Chunk, int, int]]

    @property
    def places(self) -> int:
        return sum(high - low for _, low, high in self.ranges)


class Datastore:
    """Chunks and what is known of them. name: how a user knows it."""

    def __init__(self, name: str, about: StoreInfo, chunks: Sequence[Chunk]) -> None:
        self.name, self.about, self.chunks = name, about, list(chunks)

    @staticmethod
    def open(path: str) -> "Datastore":
        """Maps the files. Raises InputError for a folder that holds no store, another version's or a torn one."""
        folder = find_local_folder(path)
        if folder is None:
            raise InputError(f"no datastore at {path}: no such folder; specbench datastore build makes one")
        about = _read_info(folder, path)
        chunks = [_open_chunk(folder, number, tokens, about.width) for number, tokens in enumerate(about.chunks)]
        return Datastore(path, about, chunks)

    @property
    def tokens(self) -> int:
        return sum(self.about.chunks)

    def holds(self, ids: Sequence[int]) -> bool:
        """Whether these ids stand somewhere in the store."""
        wanted = self._encode_known(ids)
        return len(wanted) == len(ids) * self.about.width and any(
            low < high for _, low, high in _find_ranges(self.chunks, wanted)
        )

    def find(self, query: Sequence[int], longest: int, shortest: int) -> StoreMatch | None:
        """The longest ending of the query, of `shortest` to `longest` tokens, that stands somewhere; None: none does.

        A shorter ending occurs wherever a longer one does, so its length is found by halving, in chunks that still matter.
        """
        wanted, width = self._encode_known(query[-longest:]), self.about.width
        best, chunks = None, self.chunks
        low, high = shortest, len(wanted) // width
        while low <= high:
            length = (low + high) // 2
            if ranges := _find_ranges(chunks, wanted[-length * width :]):
                best, chunks, low = StoreMatch(length, ranges), [chunk for chunk, _, _ in ranges], length + 1
            else:
                high = length - 1
        return best

    def read_continuations(self, match: StoreMatch, depth: int, most: int, sample: Sample) -> Ids:
        """(m, depth) ids behind occurrences, rows in lexicographic order; -1 behind the end of a chunk.

        sample: `spread` takes `most` of all occurrences at even distances in their order; `first` the first `most` of every
        chunk, as REST's authors do.
        """
        chosen = _take_spread(match, most) if sample == "spread" else _take_first(match, most)
        rows = [chunk.read_after(at, match.length, depth) for (chunk, _, _), at in zip(match.ranges, chosen, strict=True)]
        return rows[0] if len(rows) == 1 else _sort_rows(np.concatenate(rows))

    def _encode_known(self, ids: Sequence[int]) -> bytes:
        """The end of `ids`, encoded, behind the last id that the store does not hold and two bytes may not."""
        query = np.asarray(ids, np.int64)
        unknown = np.flatnonzero(query >= self.about.vocabulary)
        return encode_ids(query[unknown[-1] + 1 :] if len(unknown) else query, self.about.width)


def _find_ranges(chunks: Sequence[Chunk], wanted: bytes) -> list[tuple[Chunk, int, int]]:
    found = [(chunk, *chunk.find_range(wanted)) for chunk in chunks]
    return [(chunk, low, high) for chunk, low, high in found if low < high]


def _take_first(match: StoreMatch, most: int) -> list[Ids]:
    return [np.arange(low, min(high, low + most)) for _, low, high in match.ranges]


def _take_spread(match: StoreMatch, most: int) -> list[Ids]:
    """Rows of every range, out of all ranges laid one behind the other."""
    taken = min(most, match.places)
    places = np.arange(taken) * match.places // taken
    starts = np.cumsum([0] + [high - low for _, low, high in match.ranges])
    cuts = np.searchsorted(places, starts)
    parts = zip(match.ranges, starts, cuts, cuts[1:], strict=False)
    return [places[begin:end] - start + low for (_, low, _), start, begin, end in parts]


def _sort_rows(rows: Ids) -> Ids:
    """Rows in lexicographic order: compared as bytes, in a sort that makes use of the runs that are sorted already."""
    as_bytes = np.ascontiguousarray((rows + 1).astype(">u4")).view(f"S{4 * rows.shape[1]}").ravel()
    return rows[np.argsort(as_bytes, kind="stable")]


def _read_info(folder: Path, path: str) -> StoreInfo:
    try:
        said = json.loads((folder / INFO_FILE).read_text(encoding="utf-8"))
        version = said["version"]
        if version == VERSION:
            return _check_info(StoreInfo(**said))
    except FileNotFoundError:
        raise InputError(f"{path} is no datastore: it has no {INFO_FILE}") from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}/{INFO_FILE}: cannot be read: {error!r}") from None
    raise InputError(f"{path} is a datastore of version {version}, this specbench reads version {VERSION}; build it again")


def _check_info(about: StoreInfo) -> StoreInfo:
    """Raises ValueError for sizes that no store has."""
    sizes = [about.vocabulary, about.documents, *about.chunks]
    if about.width not in (2, 4) or not about.chunks or not all(type(size) is int and size > 0 for size in sizes):
        raise ValueError(f"width {about.width}, vocabulary {about.vocabulary}, chunks {about.chunks}")
    return about


def _open_chunk(folder: Path, number: int, tokens: int, width: int) -> Chunk:
    ids, suffixes = (_map_file(folder / name, tokens * size) for name, size in list_chunk_files(number, width).items())
    return Chunk(ids, suffixes, width)


def list_chunk_files(number: int, width: int) -> dict[str, int]:
    """A chunk's files, and bytes per token in each."""
    return {f"{number}.ids": width, f"{number}.suffixes": SUFFIX_BYTES}


def _map_file(path: Path, size: int) -> mmap:
    """Raises InputError for a file that is not there, or not of this size."""
    try:
        with path.open("rb") as file:
            if (there := path.stat().st_size) != size:
                raise InputError(f"{path}: {there} bytes, expected {size}: the datastore is torn; build it again")
            return mmap(file.fileno(), 0, access=ACCESS_READ)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}; build the datastore again") from None
