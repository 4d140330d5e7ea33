"""A real browser for tests of pages: a Chromium that is installed, driven by playwright. Nothing is downloaded.

A test module says `pytest_plugins = ["tests.browser"]` and takes the fixture `browser` or `visit`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CONTRAST = """() => {
  const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const luminance = ([...rgb]) => rgb.slice(0, 3).map((part) => part / 255)
    .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
    .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
  const paint = (colour, opacity) => {
    context.globalAlpha = opacity;
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    return context.getImageData(0, 0, 1, 1).data;
  };
  const known = {};
  const measure = (colour, opacity, backgrounds) => {
    paint("white", 1);
    backgrounds.forEach((one) => paint(one, 1));
    const below = luminance(paint("transparent", 1)), above = luminance(paint(colour, opacity));
    return (Math.max(above, below) + 0.05) / (Math.min(above, below) + 0.05);
  };
  const poor = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const parent = walker.currentNode.parentElement, text = walker.currentNode.textContent.trim();
    if (!text || !parent.getClientRects().length || parent.closest("script, style")) continue;
    const above = [];
    for (let element = parent; element; element = element.parentElement) above.unshift(getComputedStyle(element));
    const style = getComputedStyle(parent), colour = parent.closest("svg") ? style.fill : style.color;
    const backgrounds = above.map((one) => one.backgroundColor), opacity = above.reduce((all, one) => all * one.opacity, 1);
    const key = [colour, opacity, ...backgrounds].join();
    known[key] ??= measure(colour, opacity, backgrounds);
    if (known[key] < 4.5) poor.push([text.slice(0, 40), colour, known[key]]);
  }
  return [Object.keys(known).length, poor];
}"""


class Visit(Protocol):
    def __call__(self, place: Path | str, **options: Any) -> Page: ...


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium; the test is skipped where none is installed."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip(f"needs a Chromium on PATH: {', '.join(PROGRAMS)}")
    with sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=program)
        yield launched
        launched.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """visit(file or address, **options of new_page) opens a page. At the end: it fetched nothing else and raised no error."""
    visited: set[str] = set()
    fetched: list[str] = []
    errors: list[str] = []

    def open_page(place: Path | str, **options: Any) -> Page:
        page = browser.new_page(**{"viewport": {"width": 1280, "height": 900}, **options})
        page.on("request", lambda request: fetched.append(request.url))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        address = place.resolve().as_uri() if isinstance(place, Path) else place
        visited.add(address)
        page.goto(address)
        return page

    yield open_page
    for context in browser.contexts:
        context.close()
    assert set(fetched) <= visited and errors == []


def find_poor_contrast(page: Page) -> list[Any]:
    """Return every text that contrasts less than 4.5 with what is below it, by the rendered colours: (text, colour, contrast)."""
    pairs, poor = page.evaluate(CONTRAST)
    assert pairs > 5, "few pairs of colours: the texts were not found"
    return list(poor)
