"""Tables in GitHub's Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def format_markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], left: int | None = None) -> list[str]:
    """Return the lines of a table. left: the first columns that are aligned to the left, by default all; the others go right."""
    columns = len(header) if left is None else left
    rule = ["---" if place < columns else "---:" for place in range(len(header))]
    return ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in (header, rule, *rows)]
