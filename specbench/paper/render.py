"""`specbench paper`: every item as a figure and a table, and one page with all of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from specbench.analysis.loaded_run import read_run
from specbench.paper import draw, drift
from specbench.paper.items import LEADERBOARDS, SURVEY_ITEMS, Item, list_other_tables
from specbench.paper.matching import collect_measured, match_rows
from specbench.records.files import write_atomic
from specbench.report.canvas import inline_svg, render_svg, save_figure, use_figure_settings
from specbench.report.folder import claim_folder
from specbench.report.page import build_environment
from specbench.report.palette import Style

TABLE = [
    *("kind", "device", "target", "dtype", "temperature", "method", "task"),
    *("speedup", "sd", "mean_accepted_tokens", "source", "item"),
]


def render_paper(run_dirs: Sequence[Path], out: Path) -> Path:
    """Write index.html, drift.csv, and CSV, PNG, SVG and PDF of every item; return the page. Raises InputError."""
    claim_folder(out, ["drift.csv"])
    measured = collect_measured([read_run(path) for path in run_dirs])
    items = [*SURVEY_ITEMS, *LEADERBOARDS]
    rows = {item.name: item.rows() for item in items}
    looks = draw.choose_style(pd.concat([*rows.values(), measured]))
    matched = {item.name: match_rows(item, measured) for item in items}
    with use_figure_settings():
        figures = [_render_item(item, rows[item.name], matched[item.name], looks, out) for item in items]
        wide = drift.tabulate_by_day()
        targets = dict.fromkeys(row[:2] for row in wide.index)
        drifting = [_render_days(wide, device, target, looks, out) for device, target in targets]
    splits = [
        drift.split_difference(rows[item.name].dropna(subset=["mean_accepted_tokens"]), matched[item.name])
        for item in LEADERBOARDS
        if len(matched[item.name])
    ]
    page = _render_page(
        matched=_describe_matches(measured),
        figures=figures,
        drifting=drifting,
        over_time=wide.reset_index(),
        too_fast=drift.find_too_fast(wide),
        split=pd.concat(splits) if splits else None,
        others=list_other_tables(),
    )
    write_atomic(out / "drift.csv", wide.reset_index().to_csv(index=False))
    write_atomic(out / "index.html", page)
    return out / "index.html"


def _render_item(item: Item, published: pd.DataFrame, measured: pd.DataFrame, looks: Style, out: Path) -> dict[str, Any]:
    both = pd.concat([published, measured]).reindex(columns=TABLE)
    write_atomic(out / f"{item.name}.csv", both.to_csv(index=False))
    figure = draw.plot_bars(item, published, measured, looks)
    save_figure(figure, out / item.name)
    sources = (published["source"] + ", " + published["item"]).unique()
    runs = (measured["run"] + " on " + measured["device"]).unique()
    parts = (f"Source: {'; '.join(sources)}.", item.note, f"Measured: {', '.join(runs) or 'no matching run'}.")
    return {"svg": Markup(inline_svg(render_svg(figure))), "caption": " ".join(filter(None, parts))}


def _render_days(wide: pd.DataFrame, device: str, target: str, looks: Style, out: Path) -> dict[str, Any]:
    figure = draw.plot_over_days(wide, device, target, looks)
    save_figure(figure, out / f"drift-{device}-{target}".lower().replace(" ", "-").replace(".", ""))
    return {"svg": Markup(inline_svg(render_svg(figure))), "caption": "Source: the survey, then the leaderboard's history."}


def _describe_matches(measured: pd.DataFrame) -> str:
    if measured.empty:
        return "No run of a published target was given: everything here is published."
    runs = measured[["run", "device", "target", "dtype", "temperature"]].drop_duplicates()
    return "Measured: " + "; ".join(" · ".join(map(str, row)) for row in runs.itertuples(index=False)) + "."


def _render_page(**parts: Any) -> str:
    environment = build_environment(Path(__file__).parent)
    environment.tests["textual"] = lambda column: pd.Series(pd.to_numeric(column, errors="coerce")).count() == 0
    return environment.get_template("page.html.jinja").render(**parts)
