"""`specbench paper`: every item as a figure and a table, and one page of them all."""

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
from specbench.report.page import build_environment
from specbench.report.palette import Style

TABLE = [
    "kind",
    "device",
    "target",
    "dtype",
    "temperature",
    "method",
    "task",
    "speedup",
    "sd",
    "mean_accepted_tokens",
    "source",
    "item",
]


def render_paper(run_dirs: Sequence[Path], out: Path) -> Path:
    """Writes index.html, drift.csv and, of every item, CSV, PNG, SVG and PDF; the page. Raises InputError for what is no run."""
    beside = collect_measured([read_run(path) for path in run_dirs])
    items = [*SURVEY_ITEMS, *LEADERBOARDS]
    rows = {item.name: item.rows() for item in items}
    looks = draw.choose_style(pd.concat([*rows.values(), beside]))
    own = {item.name: match_rows(item, beside) for item in items}
    with use_figure_settings():
        figures = [_render_item(item, rows[item.name], own[item.name], looks, out) for item in items]
        wide = drift.tabulate_by_day()
        drifting = [
            _render_days(wide, device, target, looks, out) for device, target in dict.fromkeys(row[:2] for row in wide.index)
        ]
    splits = [
        drift.split_difference(_select_counted(rows[item.name]), own[item.name]) for item in LEADERBOARDS if len(own[item.name])
    ]
    page = _render_page(
        matched=_describe_matches(beside),
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


def _render_item(item: Item, published: pd.DataFrame, own: pd.DataFrame, looks: Style, out: Path) -> dict[str, Any]:
    both = pd.concat([published, own]).reindex(columns=TABLE)
    write_atomic(out / f"{item.name}.csv", both.to_csv(index=False))
    figure = draw.plot_bars(item, published, own, looks)
    save_figure(figure, out / item.name)
    source = "; ".join(
        f"{source}, {place}" for source, place in dict.fromkeys(zip(published["source"], published["item"], strict=True))
    )
    runs = ", ".join(f"{run} on {device}" for run, device in dict.fromkeys(zip(own["run"], own["device"], strict=True)))
    told = f"Measured beside it: {runs}." if runs else "Measured beside it: no run that matches."
    return {
        "svg": Markup(inline_svg(render_svg(figure))),
        "caption": " ".join(filter(None, (f"Source: {source}.", item.note, told))),
    }


def _render_days(wide: pd.DataFrame, device: str, target: str, looks: Style, out: Path) -> dict[str, Any]:
    figure = draw.plot_over_days(wide, device, target, looks)
    save_figure(figure, out / f"drift-{device}-{target}".lower().replace(" ", "-").replace(".", ""))
    return {"svg": Markup(inline_svg(render_svg(figure))), "caption": "Source: the survey, then the leaderboard's history."}


def _select_counted(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.dropna(subset=["mean_accepted_tokens"])


def _describe_matches(beside: pd.DataFrame) -> str:
    if beside.empty:
        return "No run of a published target was given: everything here is published."
    runs = beside[["run", "device", "target", "dtype", "temperature"]].drop_duplicates()
    return "Measured: " + "; ".join(" · ".join(map(str, row)) for row in runs.itertuples(index=False)) + "."


def _is_textual(column: pd.Series) -> bool:
    return bool(pd.to_numeric(column, errors="coerce").isna().all())


def _render_page(**parts: Any) -> str:
    environment = build_environment(Path(__file__).parent)
    environment.tests["textual"] = _is_textual
    return environment.get_template("page.html.jinja").render(**parts)
