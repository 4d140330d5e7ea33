"""Files that are given to verify and are no bundle, or are made to harm: each is refused in one line, with bounded memory."""

from __future__ import annotations

import os
import resource
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from specbench.bundles import container
from specbench.bundles.container import MANIFEST, pack, unpack
from specbench.bundles.submit import write_bundle
from specbench.bundles.verify import open_bundle
from specbench.errors import InputError
from tests.conftest import Refuse
from tests.stored_pair import write_pair

TRIALS = "run/trials.jsonl"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    write_bundle(write_pair(folder / "pair"), folder / "pair.zip", "0" * 64)
    return folder / "pair.zip"


def find_refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught, open_bundle(path):
        pass
    said = str(caught.value)
    assert str(path) in said and "\n" not in said
    return said


def write_zip(
    path: Path, *names: str, content: bytes = b"{}", change: Callable[[zipfile.ZipInfo], None] = lambda _: None
) -> Path:
    """A zip of these files, each packed as `pack` does; change: of each entry before it is written."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            entry = zipfile.ZipInfo(name)
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            change(entry)
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED)
    return path


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("../outside.json", "leads out of the folder"),
        ("run/../../outside.json", "leads out of the folder"),
        ("/etc/outside.json", "leads out of the folder"),
        ("C:/outside.json", "leads out of the folder"),
        ("run\\..\\outside.json", "leads out of the folder"),
        ("certificates/../certificate.json", "leads out of the folder"),
        ("certificates/.x/certificate.json", "no file of a bundle"),
        ("certificates/a b\u202e/certificate.json", "no file of a bundle"),
        ("run/extra.txt", "no file of a bundle"),
        ("run/", "no file of a bundle"),
        ("RUN/run.json", "no file of a bundle"),
    ],
)
def test_names_that_lead_elsewhere(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "in").mkdir()
    assert said in find_refusal(write_zip(tmp_path / "in" / "bad.zip", MANIFEST, name))
    assert [path.name for path in tmp_path.rglob("*")] == ["in", "bad.zip"]


def test_a_name_with_an_end_inside(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "bad.zip", "run/run.json_.txt")
    path.write_bytes(path.read_bytes().replace(b"json_.txt", b"json\0.txt"))
    assert "no file of a bundle" in find_refusal(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_come_twice(tmp_path: Path) -> None:
    assert "is given twice" in find_refusal(write_zip(tmp_path / "bad.zip", MANIFEST, MANIFEST))
    names = ("certificates/a/certificate.json", "certificates/A/certificate.json")
    assert "is given twice" in find_refusal(write_zip(tmp_path / "bad.zip", MANIFEST, *names)), "one folder on some file systems"


def link(entry: zipfile.ZipInfo) -> None:
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16


def pipe(entry: zipfile.ZipInfo) -> None:
    entry.external_attr = (stat.S_IFIFO | 0o644) << 16


@pytest.mark.parametrize(("change", "said"), [(link, "a link"), (pipe, "not a regular file")])
def test_links_and_pipes_inside(tmp_path: Path, change: Callable[[zipfile.ZipInfo], None], said: str) -> None:
    path = write_zip(tmp_path / "bad.zip", MANIFEST, content=b"/etc/passwd", change=change)
    assert said in find_refusal(path)


def test_files_that_are_no_bundle(made: Path, tmp_path: Path, refuse: Refuse) -> None:
    whole = made.read_bytes()
    bad = tmp_path / "bad.zip"
    for content in (b"", b"PK", b"no zip" * 1000, whole[:-30], whole + b"x", b"x" + whole, whole[:-2] + b"\1\0x"):
        bad.write_bytes(content)
        assert "not a zip file" in (said := find_refusal(bad)) or "its list of files does not fit" in said
    middle = len(whole) // 2
    bad.write_bytes(whole[:middle] + bytes([whole[middle] ^ 0xFF]) + whole[middle + 1 :])
    assert "a broken zip file" in find_refusal(bad)
    assert "bad.zip" in refuse("verify", str(bad))
    assert "expected a file, found a folder" in refuse("verify", str(tmp_path))
    assert "no such file" in refuse("verify", str(tmp_path / "none.zip"))
    os.mkfifo(tmp_path / "pipe")
    assert "expected a file, found a pipe" in refuse("verify", str(tmp_path / "pipe"))


def test_a_manifest_that_cannot_be_read(tmp_path: Path) -> None:
    for content, said in [
        (b"[" * 100_000, "manifest.json: nested too deeply"),
        (b"\xff\xfe", "manifest.json: not UTF-8"),
        (b"[]", "manifest.json: not a JSON object"),
        (b'{"schema": 2}', "manifest.json: schema version 2, this specbench reads version 1"),
        (b'{"schema": 1}', "is missing, expected"),
        (b'{"schema": 1, "schema": 1}', "is given twice"),
        (b'{"schema": 1, "more": 1}', "unknown fields"),
    ]:
        (tmp_path / "bad.zip").write_bytes(pack({MANIFEST: content}))
        assert said in find_refusal(tmp_path / "bad.zip")
    (tmp_path / "bad.zip").write_bytes(pack({TRIALS: b""}))
    assert "holds no manifest.json" in find_refusal(tmp_path / "bad.zip")


# Bombs


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    bomb = write_zip(tmp_path / "bomb.zip", MANIFEST, TRIALS, content=bytes(30 * 2**20))
    assert bomb.stat().st_size < 2**17
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "'manifest.json': declares 31,457,280 bytes, too many" in find_refusal(bomb)
    assert "would grow from" in find_refusal(write_zip(tmp_path / "bomb.zip", TRIALS, content=bytes(30 * 2**20)))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40 * 2**10, "kilobytes"


def test_many_files_that_are_large_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "MOST_BYTES", 3 * 2**20)
    names = [f"certificates/c{number}/certificate.json" for number in range(4)]
    path = write_zip(tmp_path / "bomb.zip", *names, content=bytes(2**20))
    assert "its files would hold 4,194,304 bytes" in find_refusal(path)
    with pytest.raises(InputError, match="a bundle holds at most"):
        pack(dict.fromkeys(names, bytes(2**20)))
    many = write_zip(tmp_path / "many.zip", *(f"certificates/c{number}/certificate.json" for number in range(100)))
    assert "100 files" in find_refusal(many)


def test_a_line_without_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "LONGEST_LINE", 2**20)
    (tmp_path / "long.zip").write_bytes(pack({TRIALS: os.urandom(2**20).replace(b"\n", b"x") * 2}))
    assert "holds a line of more than 1,048,576 bytes" in find_refusal(tmp_path / "long.zip")
    lines = (b"x" * 1000 + b"\n") * 3000
    (tmp_path / "lines.zip").write_bytes(pack({"run/texts.jsonl": lines[: 2**20]}))
    assert "holds no manifest.json" in find_refusal(tmp_path / "lines.zip"), "long, but of short lines"


def test_many_empty_lines_and_a_long_config(tmp_path: Path) -> None:
    """Each line of two bytes would become an object of forty."""
    for end in (b"\n", b"\r"):
        (tmp_path / "lines.zip").write_bytes(pack({TRIALS: (b" " + os.urandom(1).replace(b"\n", b"x") + end) * 1_000_001}))
        said = find_refusal(tmp_path / "lines.zip")
        assert "holds more than 1,000,000 lines" in said or "would grow" in said
    (tmp_path / "lines.zip").write_bytes(pack({TRIALS: os.urandom(3 * 2**17) * 4 + b"\n" * 999_999}))
    assert "holds more than 1,000,000 lines" in find_refusal(tmp_path / "lines.zip")
    (tmp_path / "config.zip").write_bytes(pack({"run/config.yaml": os.urandom(2**20 + 1)}))
    assert "'run/config.yaml': declares 1,048,577 bytes, too many" in find_refusal(tmp_path / "config.zip")


def patch_sizes(path: Path, size: int) -> None:
    """Declare another unpacked size for the only file, in its own header and in the list."""
    content = bytearray(path.read_bytes())
    start = content.index(b"PK\x01\x02")
    content[22:26] = content[start + 24 : start + 28] = struct.pack("<L", size)
    path.write_bytes(content)


def test_sizes_that_are_not_those_declared(tmp_path: Path) -> None:
    for size in (10, 10**6, 2**32 - 2):
        path = write_zip(tmp_path / "lies.zip", TRIALS, content=os.urandom(10**5))
        patch_sizes(path, size)
        said = find_refusal(path)
        assert "declares" in said or "broken zip" in said or "would hold" in said or "would grow" in said, said


def test_bytes_between_the_files_and_overlapping_files(made: Path, tmp_path: Path) -> None:
    whole = made.read_bytes()
    start = struct.unpack("<L", whole[-6:-2])[0]
    gap = whole[:start] + b"hidden" + whole[start:-6] + struct.pack("<L", start + 6) + whole[-2:]
    (tmp_path / "gap.zip").write_bytes(gap)
    assert "bytes that belong to no file, or to two" in find_refusal(tmp_path / "gap.zip")
    one = write_zip(tmp_path / "one.zip", TRIALS, content=b"{}\n" * 100).read_bytes()
    at = one.index(b"PK\x01\x02")
    listed = one[at:-22]
    other = listed.replace(b"run/trials.jsonl", b"run/prompts.json")
    end = b"PK\5\6" + struct.pack("<4H2LH", 0, 0, 2, 2, 2 * len(listed), at, 0)
    (tmp_path / "two.zip").write_bytes(one[:at] + listed + other + end)
    assert "no file of a bundle" in find_refusal(tmp_path / "two.zip")
    (tmp_path / "two.zip").write_bytes(one[:at] + listed + listed.replace(b"trials", b"TRIALS") + end)
    assert "is given twice" in find_refusal(tmp_path / "two.zip")


def test_streamed_and_otherwise_packed_files(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "packed.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr(MANIFEST, "{}" * 100)
    assert "packed in another way" in find_refusal(tmp_path / "packed.zip")


def test_a_wide_end_is_refused(tmp_path: Path, made: Path) -> None:
    whole = made.read_bytes()
    (tmp_path / "wide.zip").write_bytes(whole[:-22] + b"PK\x06\x07" + bytes(16) + whole[-22:])
    assert "not a zip file as specbench submit writes it" in find_refusal(tmp_path / "wide.zip")


def test_unpacking_gives_back_what_was_packed(tmp_path: Path) -> None:
    files = {MANIFEST: b"{}", TRIALS: os.urandom(10**5), "run/texts.jsonl": b""}
    (tmp_path / "a.zip").write_bytes(pack(files))
    (tmp_path / "out").mkdir()
    held = unpack(tmp_path / "a.zip", tmp_path / "out")
    assert {name: (tmp_path / "out" / name).read_bytes() for name in held} == files
    assert {name: file["bytes"] for name, file in held.items()} == {name: len(content) for name, content in files.items()}
