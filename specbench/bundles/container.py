"""A bundle's file: a zip with sorted names and fixed times, and the way to read one that a stranger wrote.

Nothing is believed before it was bounded: the list of files, every name, the sizes that are declared and those that come out.
Only the plain form that `pack` writes is read, in which no byte belongs to no file.
"""

from __future__ import annotations

import hashlib
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import IO, BinaryIO, TypedDict

from specbench.errors import InputError
from specbench.records.files import DOCUMENT, open_regular
from specbench.records.names import make_file_name
from specbench.records.typed import Sha256

MANIFEST = "manifest.json"
RUN = "run"  # the folder of the records
RECORDS = ("config.yaml", "run.json", "prompts.jsonl", "trials.jsonl", "texts.jsonl")
NEEDED = tuple(f"{RUN}/{name}" for name in ("config.yaml", "run.json", "trials.jsonl"))
NAME = re.compile(rf"{MANIFEST}|{RUN}/(?:{'|'.join(map(re.escape, RECORDS))})|certificates/([^/]+)/certificate\.json")
MOST_FILES = 64
MOST_BYTES = 128 * 2**20  # of all files together, unpacked; parsed records take about nine times as much memory
MOST_CONFIG = 2**20  # bytes of config.yaml, of which YAML makes a thousand times as many
MOST_LINES = 10**6  # of a file
LARGEST = 64 * 2**20  # bytes of a bundle
LONGEST_LINE = 16 * 2**20  # bytes
MOST_RATIO = 200  # of a file's size to its packed one; records reach 40
SMALL = 2**20  # bytes of a file whose ratio does not matter
PIECE = 2**16  # bytes that are read at a time
DIRECTORY = 2**16  # bytes of the list of files
END, WIDE_END = b"PK\x05\x06", b"PK\x06\x07"
END_BYTES, WIDE_BYTES, HEADER_BYTES = 22, 20, 30
UTF8 = 0x800  # the one flag that a file may have
BROKEN = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, RuntimeError, ValueError, OverflowError)


class HeldFile(TypedDict):
    """Size and fingerprint of a file in a bundle."""

    bytes: int
    sha256: Sha256


def describe_file(content: bytes) -> HeldFile:
    """Return size and fingerprint of a file's content."""
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def pack(files: Mapping[str, bytes]) -> bytes:
    """Return the bundle of these files, the same bytes for the same files. Raises InputError for what no reader would take."""
    if (size := sum(map(len, files.values()))) > MOST_BYTES:
        raise InputError(f"its files hold {size:,} bytes; a bundle holds at most {MOST_BYTES:,}")
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.create_system, entry.external_attr = 3, (stat.S_IFREG | 0o644) << 16
            archive.writestr(entry, files[name], zipfile.ZIP_DEFLATED, compresslevel=9)
    return packed.getvalue()


def unpack(path: Path, folder: Path) -> dict[str, HeldFile]:
    """Unpack a bundle into an empty folder; return size and fingerprint of each file. Raises InputError for anything else."""
    with open_regular(path) as file:
        try:
            directory = _check_end(file)
            with zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
                _check_entries(entries, directory)
                return {entry.filename: _unpack_file(archive, entry, folder) for entry in entries}
        except InputError as problem:
            raise InputError(f"{path}: {problem}") from None
        except BROKEN as error:
            raise InputError(f"{path}: a broken zip file: {error}") from None


def _check_end(file: BinaryIO) -> int:
    """Return where the list of files starts. Raises InputError for a file that does not end as `pack` ends it."""
    size = file.seek(0, 2)
    if size > LARGEST:
        raise InputError(f"holds {size:,} bytes; a bundle has at most {LARGEST:,}")
    file.seek(max(0, size - END_BYTES - WIDE_BYTES))
    tail = file.read()
    end = tail[-END_BYTES:]
    if len(end) < END_BYTES or end[:4] != END or end[-2:] != b"\0\0" or tail[:4] == WIDE_END:
        raise InputError("not a zip file as specbench submit writes it")
    count, length, start = struct.unpack("<HLL", end[10:20])
    if count > MOST_FILES or length > DIRECTORY or start + length + END_BYTES != size:
        raise InputError(f"its list of files does not fit: {count} files, {length:,} bytes at {start:,} of {size:,}")
    file.seek(0)
    return int(start)


def _check_entries(entries: Sequence[zipfile.ZipInfo], directory: int) -> None:
    """Raise InputError for the first file that no bundle holds, before any is unpacked."""
    if len(entries) > MOST_FILES:
        raise InputError(f"holds {len(entries)} files; a bundle has at most {MOST_FILES}")
    seen: set[str] = set()
    for entry in entries:
        if fault := next(_find_faults(entry, seen), None):
            raise InputError(f"{entry.orig_filename[:100]!a}: {fault}")
        seen.add(entry.filename.casefold())
    if (size := sum(entry.file_size for entry in entries)) > MOST_BYTES:
        raise InputError(f"its files would hold {size:,} bytes; a bundle holds at most {MOST_BYTES:,}")
    if sum(HEADER_BYTES + len(entry.filename.encode()) + entry.compress_size for entry in entries) != directory:
        raise InputError("holds bytes that belong to no file, or to two")


def _find_faults(entry: zipfile.ZipInfo, seen: set[str]) -> Iterator[str]:
    name, kind = entry.orig_filename, stat.S_IFMT(entry.external_attr >> 16)
    if "\\" in name or ":" in name or name.startswith("/") or ".." in name.split("/"):
        yield "its path leads out of the folder"
    if name.casefold() in seen:
        yield "is given twice"
    if kind not in (0, stat.S_IFREG):
        yield "a link" if kind == stat.S_IFLNK else "not a regular file"
    known = NAME.fullmatch(name)
    if not known or name != entry.filename or (known[1] and make_file_name(known[1]) != known[1]):
        yield "no file of a bundle"
    if entry.flag_bits & ~UTF8 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        yield "encrypted, streamed or packed in another way"
    if entry.file_size > (MOST_BYTES if name.endswith(".jsonl") else MOST_CONFIG if name.endswith(".yaml") else DOCUMENT):
        yield f"declares {entry.file_size:,} bytes, too many"
    if entry.file_size > max(SMALL, MOST_RATIO * entry.compress_size):
        yield f"would grow from {entry.compress_size:,} bytes to {entry.file_size:,}: no records do"


def _unpack_file(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: Path) -> HeldFile:
    path = folder / entry.filename
    path.parent.mkdir(parents=True, exist_ok=True)
    digest, size, line, lines = hashlib.sha256(), 0, 0, 0
    with archive.open(entry) as source, path.open("xb") as copy:
        for piece in _read_pieces(source):
            first, *others = piece.split(b"\n")
            line = len(others[-1]) if others else line + len(first)
            lines += piece.count(b"\n") + piece.count(b"\r")
            if line > LONGEST_LINE or lines > MOST_LINES:
                limit = f"more than {MOST_LINES:,} lines" if lines > MOST_LINES else f"a line of more than {LONGEST_LINE:,} bytes"
                raise InputError(f"{entry.filename!a}: holds {limit}")
            size += len(piece)
            digest.update(piece)
            copy.write(piece)
    if size != entry.file_size:
        raise InputError(f"{entry.filename!a}: declares {entry.file_size:,} bytes and holds {size:,}")
    return {"bytes": size, "sha256": digest.hexdigest()}


def _read_pieces(source: IO[bytes]) -> Iterator[bytes]:
    while piece := source.read(PIECE):
        yield piece
