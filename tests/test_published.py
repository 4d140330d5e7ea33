"""The tables of README and docs are those of the stored runs."""

from pathlib import Path

import pytest

from benchmarks.published import TABLE, fill_tables, list_pages
from specbench.errors import InputError

pytestmark = pytest.mark.full


@pytest.mark.parametrize("page", list_pages(), ids=lambda page: page.name)
def test_a_page_shows_the_tables_of_its_runs(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.count("<!-- table:") == text.count("<!-- end of table -->") == len(TABLE.findall(text))
    assert fill_tables(text) == text, "python -m benchmarks.published writes the tables again"


def test_readme_has_a_table() -> None:
    assert TABLE.search(list_pages()[0].read_text(encoding="utf-8"))


def test_a_changed_number_is_found() -> None:
    (page, *_) = list_pages()
    text = page.read_text(encoding="utf-8")
    changed = text.replace("| 1.00 |", "| 1.01 |", 1)
    assert changed != text == fill_tables(changed)


@pytest.mark.parametrize("words", ["oddline cpu-smollm2", "columns cpu-smollm2 sped", "headline cpu-nowhere"])
def test_an_unknown_table_gets_one_line(words: str) -> None:
    with pytest.raises(InputError, match=words.split()[-1] if "oddline" not in words else "headline"):
        fill_tables(f"<!-- table: {words} -->\n<!-- end of table -->")
