"""Builds datastores: streams ids to disk, then writes the suffix array of every chunk. A folder appears only when complete.

libdivsufsort sorts the suffixes of the bytes; those that start an id are kept. Ids are big-endian, so this is the order of ids.
Sorting takes five times the bytes of a chunk's ids, 2.7 GB for a full chunk; larger stores take no more.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydivsufsort import divsufsort

from specbench.datastore.store import Chunk, Datastore, StoreInfo, encode_ids, list_chunk_files, pick_width
from specbench.errors import InputError
from specbench.watch import Watch

CHUNK = 1 << 29  # bytes of ids
MOST_BYTES = (1 << 31) - 1  # of a chunk's ids: suffix array entries have 4 bytes
BLOCK = 1 << 22  # suffixes written at once
WATCHED = 64  # documents between progress reports
Document = Sequence[int] | NDArray[np.integer]


def build_datastore(
    documents: Iterable[Document],
    out: Path,
    vocabulary: int,
    tokenizer: str | None,
    source: str,
    watch: Watch = lambda *_: None,
    chunk_tokens: int | None = None,
) -> Path:
    """Build the documents' store in the new folder `out`. Raises InputError: `out` exists, no documents, an unknown id.

    Everything is written beside `out` first, and removed on any error.
    """
    if out.exists():
        raise InputError(f"out={out}: already exists; choose another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    writer = Writer(part, vocabulary, chunk_tokens, watch)
    try:
        for document in documents:
            writer.add(document)
        writer.finish(tokenizer, source).write(part)
        part.chmod(0o755)
        part.rename(out)
    except BaseException:
        with suppress(OSError):  # a full disk cannot take the buffered bytes
            writer.close()
        shutil.rmtree(part, ignore_errors=True)
        raise
    return out


class Writer:
    """Writes documents into chunks; no document spans two chunks."""

    def __init__(self, folder: Path, vocabulary: int, chunk_tokens: int | None, watch: Watch) -> None:
        self.folder, self.vocabulary, self.watch = folder, vocabulary, watch
        self.width = pick_width(vocabulary)
        self.capacity = min(chunk_tokens or CHUNK // self.width, MOST_BYTES // self.width)
        self.chunks: list[int] = []
        self.documents, self.room, self.largest = 0, 0, 0
        self._file: BinaryIO | None = None
        self._sha256 = hashlib.sha256()

    def add(self, document: Document) -> None:
        """Append a document unless it is empty. Raises InputError."""
        ids = np.asarray(document)
        if not len(ids):
            return
        self._check_ids(ids)
        if len(ids) > self.room:
            self._start_chunk()
        data = encode_ids(ids, self.width)
        self._sha256.update(data)
        assert self._file is not None
        self._file.write(data)
        self.room -= len(ids)
        self.chunks[-1] += len(ids)
        self.documents += 1
        if self.documents % WATCHED == 0:
            self.watch("tokens read", sum(self.chunks), None)

    def _check_ids(self, ids: NDArray[np.integer]) -> None:
        least, largest = int(ids.min()), int(ids.max())
        if least < 0 or largest >= self.vocabulary:
            wrong = least if least < 0 else largest
            raise InputError(f"document {self.documents + 1} holds the id {wrong}; the vocabulary has {self.vocabulary}")
        if len(ids) * self.width > MOST_BYTES:
            raise InputError(f"document {self.documents + 1} has {len(ids)} tokens; a chunk holds {MOST_BYTES // self.width}")
        self.largest = max(self.largest, largest)

    def finish(self, tokenizer: str | None, source: str) -> StoreInfo:
        """Sort the last chunk and return the content of store.json. Raises InputError if there were no documents."""
        if not self.chunks:
            raise InputError(f"{source}: contains no document, so no datastore can be built")
        self._sort()
        return StoreInfo(
            tokenizer=tokenizer,
            vocabulary=1 + self.largest,
            width=self.width,
            chunks=self.chunks,
            documents=self.documents,
            sha256=self._sha256.hexdigest(),
            source=source,
        )

    def _start_chunk(self) -> None:
        if self.chunks:
            self._sort()
        self.room = self.capacity
        self.chunks.append(0)
        self._file = self._list_files()[0].open("wb")

    def _sort(self) -> None:
        """Write the current chunk's suffix array. Raises OSError on a full disk, as writing ids does."""
        self.close()
        ids, suffixes = self._list_files()
        self.watch("tokens read, sorting their suffixes", sum(self.chunks), None)
        with suffixes.open("wb") as file:
            for block in sort_suffixes(ids.read_bytes(), self.width):
                file.write(block.data)

    def close(self) -> None:
        """Close the current chunk's ids."""
        if self._file is not None:
            self._file.close()

    def _list_files(self) -> list[Path]:
        return [self.folder / name for name in list_chunk_files(len(self.chunks) - 1, self.width)]


def sort_suffixes(ids: bytes, width: int) -> Iterator[NDArray[np.int32]]:
    """Yield the suffix array of encoded ids, as token indices, in blocks: at once it would take twice the memory."""
    every_byte = divsufsort(ids)
    for start in range(0, len(every_byte), BLOCK):
        block = every_byte[start : start + BLOCK]
        yield (block[block % width == 0] // width).astype("<i4")


def build_in_memory(documents: Sequence[Document], vocabulary: int) -> Datastore:
    """Build a small store without a folder, for any tokenizer."""
    width = pick_width(vocabulary)
    tokens = np.concatenate([np.asarray(document) for document in documents])
    ids = encode_ids(tokens, width)
    suffixes = b"".join(block.tobytes() for block in sort_suffixes(ids, width))
    about = StoreInfo(
        tokenizer=None,
        vocabulary=1 + int(tokens.max()),
        width=width,
        chunks=[len(ids) // width],
        documents=len(documents),
        sha256=hashlib.sha256(ids).hexdigest(),
        source="memory",
    )
    return Datastore("random", about, [Chunk(ids, suffixes, width)])
