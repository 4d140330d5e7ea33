"""A hook of MkDocs: a link to a file of the repository leads to that file in the site.

On GitHub, `../specbench/decoding/loop.py` is the file. In the site, pictures and data are copied to `repository/`, Markdown is
rendered there, and any other text file or folder gets a page that shows it. A line that is only a link to a YAML shows the YAML.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from posixpath import dirname, relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

DOCS = Path(__file__).resolve().parents[1]
ROOT = DOCS.parent
LINK = re.compile(r"(?<=\]\()[^)\s#:]+(?=[)#])")
YAML = re.compile(r"^\[[^]]+\]\(([^)]+\.yaml)\)$", re.MULTILINE)
COPIED = (".png", ".csv", ".json")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".cff": "yaml"}
FENCE = "`" * 8  # longer than any fence of a file that is shown
HIDDEN = "---\nsearch:\n  exclude: true\n---\n\n"
IN_NAVIGATION = ("repository/CONTRIBUTING.md",)


def find_page(path: Path) -> str:
    """Return where the site has a file or folder of the repository, as the path of its source."""
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    name = f"repository/{path.relative_to(ROOT).as_posix()}"
    if path.is_dir():
        return f"{name}/index.md"
    return name if path.suffix in (".md", *COPIED) else f"{name}.md"


def find_source(page: str) -> Path:
    """Return the file of the repository that a page of Markdown renders."""
    return ROOT / page.removeprefix("repository/") if page.startswith("repository/") else DOCS / page


def find_links(markdown: str, source: Path) -> Iterator[Path]:
    """Yield the files and folders outside of docs/ that a page links to."""
    for link in LINK.findall(markdown):
        path = (source.parent / link).resolve()
        if path.exists() and path.is_relative_to(ROOT) and not path.is_relative_to(DOCS):
            yield path


def quote(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    return f"{FENCE}{LANGUAGES.get(path.suffix, 'text')}\n{text}\n{FENCE}\n"


def show(path: Path) -> str:
    """Return a page that shows a text file or lists a folder."""
    title = f"{HIDDEN}# {path.relative_to(ROOT).as_posix()}\n\n"
    if path.is_dir():
        return title + "\n".join(f"- `{file.name}`{'/' if file.is_dir() else ''}" for file in sorted(path.iterdir())) + "\n"
    return title + quote(path)


def add_file(path: Path, config: MkDocsConfig) -> File:
    page = find_page(path)
    shown = InclusionLevel.INCLUDED if page in IN_NAVIGATION else InclusionLevel.NOT_IN_NAV
    if path.suffix in (".md", *COPIED):
        return File.generated(config, page, abs_src_path=str(path), inclusion=shown)
    return File.generated(config, page, content=show(path), inclusion=shown)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what the pages link to, and what the Markdown among that links to."""
    waiting, seen = [DOCS / file.src_uri for file in files.documentation_pages()], set[Path]()
    while waiting:
        page = waiting.pop()
        for path in find_links(page.read_text(encoding="utf-8"), page):
            if path in seen:
                continue
            seen.add(path)
            files.append(add_file(path, config))
            if path.suffix == ".md":
                waiting.append(path)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite a page's links to what the site has of the repository, and show linked YAMLs."""
    here = page.file.src_uri
    source = find_source(here)
    markdown = YAML.sub(lambda line: f"{line[0]}\n\n{quote(source.parent / line[1])}", markdown)

    def rewrite(link: re.Match[str]) -> str:
        path = (source.parent / link[0]).resolve()
        place = find_page(path) if path.exists() and path.is_relative_to(ROOT) else ""
        return relpath(place, dirname(here)) if place and files.get_file_from_path(place) else link[0]

    return LINK.sub(rewrite, markdown)
