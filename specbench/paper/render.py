"""`specbench paper`: every item as a figure and a table, and one page of them all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from specbench.analysis.loaded_run import load
from specbench.paper import draw, drift
from specbench.paper.items import LEADERBOARDS, SURVEY_ITEMS, Item, other_tables
from specbench.paper.matching import matching, measured
from specbench.records.files import write_atomic
from specbench.report.figures import drawing, inline, save, svg
from specbench.report.page import page_environment
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


def render(run_dirs: Sequence[Path], out: Path) -> Path:
    """Writes index.html, drift.csv and, of every item, CSV, PNG, SVG and PDF; the page. Raises InputError for what is no run."""
    beside = measured([load(path) for path in run_dirs])
    items = [*SURVEY_ITEMS, *LEADERBOARDS]
    rows = {item.name: item.rows() for item in items}
    looks = draw.style_of(pd.concat([*rows.values(), beside]))
    own = {item.name: matching(item, beside) for item in items}
    with drawing():
        figures = [_item(item, rows[item.name], own[item.name], looks, out) for item in items]
        wide = drift.over_time()
        drifting = [_days(wide, device, target, looks, out) for device, target in dict.fromkeys(row[:2] for row in wide.index)]
    splits = [drift.split(_counted(rows[item.name]), own[item.name]) for item in LEADERBOARDS if len(own[item.name])]
    page = _page(
        matched=_matched(beside),
        figures=figures,
        drifting=drifting,
        over_time=wide.reset_index(),
        too_fast=drift.too_fast(wide),
        split=pd.concat(splits) if splits else None,
        others=other_tables(),
    )
    write_atomic(out / "drift.csv", wide.reset_index().to_csv(index=False))
    write_atomic(out / "index.html", page)
    return out / "index.html"


def _item(item: Item, published: pd.DataFrame, own: pd.DataFrame, looks: Style, out: Path) -> dict[str, Any]:
    both = pd.concat([published, own]).reindex(columns=TABLE)
    write_atomic(out / f"{item.name}.csv", both.to_csv(index=False))
    figure = draw.bars(item, published, own, looks)
    save(figure, out / item.name)
    source = "; ".join(
        f"{source}, {place}" for source, place in dict.fromkeys(zip(published["source"], published["item"], strict=True))
    )
    runs = ", ".join(f"{run} on {device}" for run, device in dict.fromkeys(zip(own["run"], own["device"], strict=True)))
    told = f"Measured beside it: {runs}." if runs else "Measured beside it: no run that matches."
    return {"svg": Markup(inline(svg(figure))), "caption": " ".join(filter(None, (f"Source: {source}.", item.note, told)))}


def _days(wide: pd.DataFrame, device: str, target: str, looks: Style, out: Path) -> dict[str, Any]:
    figure = draw.over_days(wide, device, target, looks)
    save(figure, out / f"drift-{device}-{target}".lower().replace(" ", "-").replace(".", ""))
    return {"svg": Markup(inline(svg(figure))), "caption": "Source: the survey, then the leaderboard's history."}


def _counted(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.dropna(subset=["mean_accepted_tokens"])


def _matched(beside: pd.DataFrame) -> str:
    if beside.empty:
        return "No run of a published target was given: everything here is published."
    runs = beside[["run", "device", "target", "dtype", "temperature"]].drop_duplicates()
    return "Measured: " + "; ".join(" · ".join(map(str, row)) for row in runs.itertuples(index=False)) + "."


def _textual(column: pd.Series) -> bool:
    return bool(pd.to_numeric(column, errors="coerce").isna().all())


def _page(**parts: Any) -> str:
    environment = page_environment(Path(__file__).parent)
    environment.tests["textual"] = _textual
    return environment.get_template("page.html.jinja").render(**parts)
