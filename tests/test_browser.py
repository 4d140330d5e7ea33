"""The report's page in a real browser: sorted, filtered, pointed at, printed, in the dark and on a phone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page

from specbench.paper.render import render_paper
from specbench.report.palette import KNOWN
from specbench.report.render import render_report
from tests.browser import Visit, find_poor_contrast
from tests.fake_run import made_up_trials, write_run

pytest_plugins = ["tests.browser"]
pytestmark = pytest.mark.full

TASKS = ["qa", "rag", "mt_bench"]
MANY = [*KNOWN, "suffix_cold", "sam_decoding_static", "eagle3_depth2", "mine", "another_one_with_a_rather_long_name", "x", "y"]
PHONE = {"viewport": {"width": 390, "height": 800}}


@pytest.fixture(scope="module", autouse=True)
def coarse_pictures() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("specbench.report.canvas.DPI", 30)
        yield


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of three methods; pld is slower than autoregressive decoding, and sps the fastest."""
    folder = tmp_path_factory.mktemp("report")
    run = write_run(folder / "run", made_up_trials({"pld": 0.01, "sps": 0.8, "medusa": 0.4}, TASKS))
    for method in ("autoregressive", "sps"):
        run.append_text(method, 0, 0, f"a text of {method}", None)
    return render_report([run.path], folder / "out").page


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of 25 methods on six tasks."""
    folder = tmp_path_factory.mktemp("crowd")
    tasks = [*TASKS, "translation", "summarization", "math_reasoning"]
    chances = {name: 0.1 + 0.8 * place / len(MANY) for place, name in enumerate(MANY)}
    return render_report([write_run(folder / "run", made_up_trials(chances, tasks, 3)).path], folder / "out").page


def table(page: Page, name: str = "Speedup") -> Locator:
    return page.get_by_role("region", name=name, exact=True).locator("table")


def first_column(page: Page) -> list[str]:
    """The methods in the table, from the top."""
    return [text.strip() for text in table(page).locator("tbody tr:visible th").all_inner_texts()]


def heading(page: Page, name: str) -> Locator:
    return table(page).locator("thead th").filter(has=page.get_by_role("button", name=name, exact=True))


def choose(page: Page, name: str) -> None:
    """Press the checkbox of a method or a task."""
    if not page.locator("details.choices[open]").count():
        page.get_by_text("Choose methods and tasks").click()
    page.get_by_role("checkbox", name=name, exact=True).click()


def overall(page: Page) -> Locator:
    """The panel of all tasks together."""
    return page.locator('.panel[data-task="overall"]')


def test_the_fastest_come_first_and_autoregressive_decoding_at_its_place(report: Path, visit: Visit) -> None:
    page = visit(report)
    assert first_column(page) == ["sps", "medusa", "autoregressive", "pld"]
    assert heading(page, "overall").get_attribute("aria-sort") == "descending"
    assert overall(page).locator(".bars div > span:first-child").all_inner_texts() == ["sps", "medusa", "pld"]


def test_a_click_or_a_key_on_a_heading_sorts(report: Path, visit: Visit) -> None:
    page = visit(report)
    heading(page, "overall").click()
    assert first_column(page) == ["pld", "autoregressive", "medusa", "sps"]
    button = heading(page, "method").get_by_role("button")
    button.focus()
    page.keyboard.press("Enter")
    assert first_column(page) == ["autoregressive", "medusa", "pld", "sps"]
    page.keyboard.press("Space")
    assert first_column(page) == ["sps", "pld", "medusa", "autoregressive"]
    assert heading(page, "method").get_attribute("aria-sort") == "descending"
    assert table(page).locator("[aria-sort]").count() == 1
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "mt bench", "every heading is reached by Tab"


def test_methods_are_chosen_in_tables_and_figures_alike(report: Path, visit: Visit) -> None:
    page = visit(report)
    lines = page.locator('figure > div > svg [data-method="sps"]:visible')
    assert lines.count() > 5
    height = page.locator(".panels").bounding_box()
    choose(page, "sps")
    assert first_column(page) == ["medusa", "autoregressive", "pld"]
    assert overall(page).locator("div[data-method]:visible").count() == 2 and lines.count() == 0
    assert page.locator('[data-method="sps"]:visible').count() == 0
    smaller = page.locator(".panels").bounding_box()
    assert height and smaller and smaller["height"] < height["height"] - 20, "the figure closes up"
    page.get_by_role("group", name="methods").get_by_role("button", name="none").click()
    assert first_column(page) == ["autoregressive"], "the reference stays"
    page.get_by_role("group", name="methods").get_by_role("button", name="all").click()
    assert len(first_column(page)) == 4


def test_tasks_are_chosen_in_tables_and_figures_alike(report: Path, visit: Visit) -> None:
    page = visit(report)
    columns = table(page).locator("thead th:visible").count()
    assert page.locator(".panel:visible").count() == 4 and overall(page).locator(".dot:visible").count() == 9
    choose(page, "mt bench")
    assert table(page).locator("thead th:visible").count() == columns - 1
    assert table(page).locator('[data-task="mt_bench"]:visible').count() == 0
    assert page.locator(".panel:visible").count() == 3 and overall(page).locator(".dot:visible").count() == 6
    heading(page, "qa").click()
    assert first_column(page)[0] == "sps", "columns that are hidden do not disturb sorting"


def test_a_point_says_its_value_to_the_pointer_and_to_the_keyboard(report: Path, visit: Visit) -> None:
    page = visit(report)
    tip = page.get_by_role("status")
    assert tip.inner_text() == ""
    point = overall(page).locator('[data-method="sps"] [data-value]').last
    point.hover()
    assert re.fullmatch(r"sps, overall: \d\.\d\d \[\d\.\d\d, \d\.\d\d\], rank 1", tip.inner_text()) and tip.is_visible()
    page.mouse.move(1, 1)
    assert tip.inner_text() == ""
    page.locator("figure > div > svg use[data-value]").first.hover(force=True)
    assert re.fullmatch(r"\w+, \w+: speedup \d\.\d\d, \d\.\d\d tokens", tip.inner_text())
    page.mouse.move(1, 1)
    page.locator("figure").first.focus()
    page.keyboard.press("ArrowRight")
    first = tip.inner_text()
    page.keyboard.press("ArrowRight")
    assert first.startswith("sps, ") and tip.inner_text() not in ("", first)
    page.keyboard.press("Escape")
    assert tip.inner_text() == ""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_enough_contrast(report: Path, visit: Visit, scheme: str) -> None:
    page = visit(report, color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    assert find_poor_contrast(page) == []
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", back))) < 150) == (scheme == "dark")


def test_a_planted_pale_text_is_found(report: Path, visit: Visit) -> None:
    page = visit(report)
    page.evaluate("document.querySelector('h1').style.color = '#999'")
    assert [text for text, *_ in find_poor_contrast(page)] == ["Speculative decoding: fake, expanded to "]


def test_every_figure_has_a_text_and_headings_leave_no_level_out(report: Path, visit: Visit) -> None:
    page = visit(report)
    pictures = page.locator("figure > div > svg")
    assert pictures.count() >= 3
    assert all((one.get_attribute("aria-label") or "").startswith("Chart: ") for one in pictures.all())
    levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3')].map((one) => +one.tagName[1])")
    assert levels[0] == 1 and all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))


def test_print_is_light_and_leaves_the_controls_out(report: Path, visit: Visit) -> None:
    page = visit(report, color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator(".choices").is_visible() and not page.locator(".tip").is_visible()
    assert page.pdf().startswith(b"%PDF") and find_poor_contrast(page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_scrolls_tables_but_not_the_page(crowd: Path, visit: Visit, scheme: str) -> None:
    page = visit(crowd, color_scheme=scheme, **PHONE)
    page.get_by_text("Choose methods and tasks").click()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    box = page.get_by_role("region", name="Speedup", exact=True)
    assert box.evaluate("box => box.scrollWidth > box.clientWidth")
    name = table(page).locator("tbody th").first
    before = name.bounding_box()
    box.evaluate("box => { box.scrollLeft = 200; }")
    assert name.bounding_box() == before, "the first column stays"


def test_many_methods_fit_into_one_small_page(crowd: Path, visit: Visit) -> None:
    assert crowd.stat().st_size < 500_000
    page = visit(crowd)
    boxes = [box for one in overall(page).locator(".bars > div").all() if (box := one.bounding_box())]
    assert len(boxes) == 25 and all(a["y"] + a["height"] <= b["y"] + 0.5 for a, b in zip(boxes, boxes[1:], strict=False))
    colours = overall(page).evaluate(
        "panel => [...panel.querySelectorAll('circle:not(.dot)')].map((one) => getComputedStyle(one).stroke)"
    )
    assert len(set(colours)) == 25


def test_the_page_of_published_numbers_works_too(tmp_path: Path, visit: Visit) -> None:
    page = visit(render_paper([], tmp_path / "out"), color_scheme="dark", **PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.locator("figure [data-value]").first.hover()
    assert page.get_by_role("status").inner_text().startswith("EAGLE, published, mt bench: 2.3")
