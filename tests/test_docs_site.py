"""The pages as a site, and the pages that list settings, files and columns."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from specbench import ROOT
from specbench.analysis.summary import COLUMNS
from specbench.records.trial import Trial

FILES = (ROOT / "docs" / "files.md").read_text(encoding="utf-8")


def names_in(section: str) -> set[str]:
    """Return the names in the first column of a section's table."""
    _, _, rest = FILES.partition(f"## {section}\n")
    table, _, _ = rest.partition("\n## ")
    return {name for row in re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}


def test_every_column_of_summary_csv_is_explained() -> None:
    assert names_in("Columns of `summary.csv`") == set(COLUMNS)


def test_every_field_of_a_trial_is_explained() -> None:
    assert names_in("Fields of `trials.jsonl`") == {field.name for field in dataclasses.fields(Trial)}


@pytest.mark.full
@pytest.mark.skipif(find_spec("mkdocs") is None, reason="needs the extra docs")
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """Links and anchors are checked, also those of README and of the files that the pages lead to."""
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "site" / "index.html").is_file()
    pages = "".join(page.read_text(encoding="utf-8") for page in (tmp_path / "site").glob("*.html"))
    loaded = re.findall(r'<(?:script|img|iframe)[^>]+src="https?:[^>]+|<link[^>]+stylesheet[^>]+href="https?:[^>]+', pages)
    assert loaded == [], "the site loads from other hosts"
