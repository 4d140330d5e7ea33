"""The folder of a page: only one that is new, empty or our own is written to."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from specbench.errors import InputError
from specbench.records.files import open_regular, write_atomic
from specbench.records.run_directory import RunDirectory

PAGE = "index.html"
MARK = b'<meta name="generator" content="specbench">'  # near the top of our pages
HEAD = 1000  # bytes
UNFINISHED = f"<!DOCTYPE html>\n{MARK.decode()}\n<title>specbench</title>\n<p>This page was not finished.</p>\n"


def choose_folder(run: Path) -> Path:
    """Return the folder of a page that nobody named: reports/<name of the run, or of the folder of runs>."""
    return Path("reports") / run.resolve().name


def claim_folder(out: Path, names: Iterable[str]) -> None:
    """Put an unfinished page into `out`, where there is none of ours. names: of all files that will be written.

    Raises InputError before anything is written, if `out` is a run, or holds files of these names that are not a report's.
    """
    if RunDirectory(out).is_run():
        raise InputError(f"--out {out}: holds a run; choose another folder")
    if _is_ours(out / PAGE):
        return
    foreign = [name for name in (PAGE, *names) if (out / name).is_symlink() or (out / name).exists()]
    if foreign:
        raise InputError(f"--out {out}: holds a file {foreign[0]} that specbench did not write; choose another folder")
    write_atomic(out / PAGE, UNFINISHED)


def _is_ours(page: Path) -> bool:
    """Whether a page was written by specbench."""
    if not page.is_file():
        return False
    with open_regular(page) as file:
        return MARK in file.read(HEAD)
