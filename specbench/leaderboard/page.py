"""index.html, leaderboard.csv and leaderboard.md. The page fetches nothing; its filters are plain JavaScript."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from specbench.analysis.loaded_run import LoadedRun
from specbench.analysis.summary import format_csv
from specbench.leaderboard import rows as board
from specbench.records.files import write_atomic
from specbench.records.markdown import format_markdown_table
from specbench.records.trial import BASELINE, OVERALL
from specbench.report.folder import PAGE, claim_folder
from specbench.report.tables import format_number, format_rank

Row = Mapping[Hashable, Any]
FILTERS = ("task", "target", "device", "method", "batch")
FILES = ("leaderboard.csv", "leaderboard.md")
ACCEPTANCE_HEAD = ("method", "mean accepted tokens", "conversion", "machine", "questions", "numbers", "certificate", "run")
SPEED_HEAD = ("rank", "method", "speedup", "tokens/s", "questions", "numbers", "certificate", "version", "run")


@dataclass(frozen=True)
class Board:
    """What was written. rows: those of leaderboard.csv."""

    page: Path
    rows: pd.DataFrame

    @property
    def lines(self) -> list[str]:
        """What there is, for the terminal."""
        overall = self.rows[self.rows["task"] == OVERALL]
        leaders = [
            f"{board.describe_speed_group(row)}: {row['method']}, {format_interval(row, 'speedup')} ({row['run']})"
            for row in overall[overall["rank_best"] == 1].to_dict("records")
        ]
        alarmed = overall[overall["alarms"] != ""]["run"].nunique()
        groups = self.rows["speed_group"].nunique()
        counts = f"runs: {self.rows['run'].nunique()}, with alarms: {alarmed}, groups whose speeds compare: {groups}"
        return [counts, *(f"rank 1: {leader}" for leader in leaders)]

    @property
    def records(self) -> list[dict[str, Any]]:
        """The rows as plain JSON, null without a number."""
        records: list[dict[str, Any]] = json.loads(self.rows.to_json(orient="records"))
        return records


def write_leaderboard(runs: Sequence[LoadedRun], out: Path) -> Board:
    """Write the leaderboard of these runs. Raises InputError for no run, one that comes twice, and a folder that is not ours."""
    rows = board.tabulate_runs(runs)
    claim_folder(out, FILES)
    write_atomic(out / "leaderboard.csv", format_csv(rows))
    write_atomic(out / "leaderboard.md", format_markdown(rows))
    write_atomic(out / PAGE, render_page(rows))
    return Board(out / PAGE, rows)


def render_page(rows: pd.DataFrame) -> str:
    """Return the HTML text."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(
        number=format_number,
        rank=format_rank,
        interval=format_interval,
        machine=board.describe_machine,
        place=_describe_place,
        breakable=lambda label: Markup("_<wbr>").join(str(label).split("_")),
    )
    choices = {name: _list_choices(rows, name) for name in FILTERS}
    places = {name: {value: place for place, value in enumerate(values)} for name, values in choices.items()}
    return environment.get_template("board.html.jinja").render(
        choices=choices,
        acceptance=list(_iter_groups(rows, "acceptance_group", "mean_accepted_tokens", places)),
        speed=list(_iter_groups(rows, "speed_group", "speedup", places)),
        runs=rows[(rows["task"] == OVERALL) & ~rows["run"].where(rows["task"] == OVERALL).duplicated()].to_dict("records"),
        alarms=_list_alarms(rows),
        baseline=BASELINE,
        overall=OVERALL,
    )


def _list_choices(rows: pd.DataFrame, name: str) -> list[Any]:
    """Return the values of a filter in order, overall before the tasks."""
    values = sorted(set(rows[name]), key=lambda value: (value not in (OVERALL, BASELINE), value))
    return [int(value) for value in values] if name == "batch" else values


def _iter_groups(rows: pd.DataFrame, column: str, by: str, places: Mapping[str, Mapping[Any, int]]) -> Iterator[dict[str, Any]]:
    """Yield heading, conditions and rows of each group; what a row is filtered by becomes numbers in `filter`."""
    describe, others = board.DESCRIBED[column]
    for _, cells in rows.groupby(column, sort=False):
        records = board.sort_rows(cells, by).to_dict("records")
        for record in records:
            record["filter"] = " ".join(str(places[name][record[name]]) for name in FILTERS)
        yield {
            "heading": describe(records[0]),
            "conditions": others(records[0]),
            "rows": records,
        }


def _list_alarms(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """Return (run, alarm), each once."""
    overall = rows[rows["task"] == OVERALL]
    pairs = [(row["run"], one) for row in overall.to_dict("records") for one in row["alarms"].split(board.BETWEEN) if one]
    return list(dict.fromkeys(pairs))


def format_interval(row: Row, name: str) -> str:
    """Return 2.31 [2.20, 2.44], or 2.31 without an interval."""
    value = format_number(row[name])
    if row["method"] == BASELINE or pd.isna(row[f"{name}_low"]):
        return value
    return f"{value} [{row[f'{name}_low']:.2f}, {row[f'{name}_high']:.2f}]"


def _describe_place(row: Row) -> str:
    """Return in short what an acceptance group's rows differ by."""
    shape = f", {row['shape']}" if row["shape"] else ""
    batch = f", batch {row['batch']}" if row["batch"] > 1 else ""
    return f"{row['device']}, {row['dtype']}{shape}{batch}"


def format_markdown(rows: pd.DataFrame) -> str:
    """Return the rows of all tasks together as tables in GitHub's Markdown, group by group."""
    overall = rows[rows["task"] == OVERALL]
    lines = ["# Leaderboard", "", "## Acceptance and conversion, across machines", "", "In order of acceptance, not ranked."]
    for _, cells in overall.groupby("acceptance_group", sort=False):
        records = board.sort_rows(cells, "mean_accepted_tokens").to_dict("records")
        lines += _format_group("acceptance_group", records, ACCEPTANCE_HEAD, _acceptance_cells, left=1)
    lines += ["", "## Speed, one machine at a time", ""]
    lines += ["A rank is a range where 95 % intervals overlap; rows with alarms, and yardsticks, have none."]
    for _, cells in overall.groupby("speed_group", sort=False):
        records = board.sort_rows(cells, "speedup").to_dict("records")
        lines += _format_group("speed_group", records, SPEED_HEAD, _speed_cells, left=2)
    alarms = [f"- {run}: {alarm}" for run, alarm in _list_alarms(rows)]
    return "\n".join([*lines, *(["", "## Alarms", "", *alarms] if alarms else []), ""])


def _format_group(
    column: str, records: Sequence[Row], head: Sequence[str], cells: Callable[[Row], list[str]], left: int
) -> list[str]:
    describe, others = board.DESCRIBED[column]
    table = format_markdown_table(head, [cells(record) for record in records], left)
    return ["", f"### {describe(records[0])}", "", f"Conditions: {others(records[0])}.", "", *table]


def _mark_method(row: Row) -> str:
    return f"{row['method']}{' (warm)' * (row['state'] == 'warm')}{' **alarm**' * bool(row['alarms'])}"


def _acceptance_cells(row: Row) -> list[str]:
    accepted, conversion = format_number(row["mean_accepted_tokens"]), format_interval(row, "conversion")
    place = _describe_place(row)
    return [_mark_method(row), accepted, conversion, place, str(row["questions"]), row["kind"], row["lossless"], row["run"]]


def _speed_cells(row: Row) -> list[str]:
    speeds = [format_interval(row, "speedup"), format_number(row["tokens_per_second"], 1)]
    version = f"{row['specbench']} {row['commit']}".strip()
    counted = [f"{row['questions']} × {row['repeats']}", row["kind"], row["lossless"], version, row["run"]]
    return [format_rank(row), _mark_method(row), *speeds, *counted]
