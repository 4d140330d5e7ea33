"""The leaderboard compares only what may be compared, marks what must not be trusted, and runs no stranger's text."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from specbench import ROOT
from specbench.analysis.loaded_run import LoadedRun, read_run
from specbench.bundles.submit import write_bundle
from specbench.errors import InputError
from specbench.leaderboard.page import format_markdown, render_page, write_leaderboard
from specbench.leaderboard.rows import COLUMNS, sort_rows, tabulate_runs
from specbench.records.run_directory import RunDirectory
from specbench.records.trial import BASELINE, OVERALL
from tests.conftest import Cli, Refuse
from tests.fake_run import CONFIG, made_up_trials, write_run
from tests.stored_pair import write_pair


def make_run(folder: Path, seed: int = 0, methods: dict[str, float] | None = None, **changes: Any) -> LoadedRun:
    """A made-up run. changes: of its config, but device, machine, started and baseline of its run.json."""
    facts = {name: changes.pop(name) for name in ("device", "machine", "started", "baseline") if name in changes}
    run = write_run(folder, made_up_trials(methods or {"pld": 0.3, "sps": 0.7}, ("qa", "rag"), 4, seed), **facts)
    run.write_config({**CONFIG, "sampling": {"temperature": 0, "max_new_tokens": 61}, **changes})
    return read_run(folder, [])


def pick(rows: pd.DataFrame, method: str, task: str = OVERALL) -> pd.DataFrame:
    return rows[(rows["method"] == method) & (rows["task"] == task)]


DIFFERENT: list[dict[str, Any]] = [
    {"device": {"kind": "cuda", "name": "another card"}},
    {"machine": {"cpu": "no such", "cores": 64, "threads": 64}},
    {"target": {**CONFIG["target"], "shape": "1b"}},  # type: ignore[dict-item]
    {"target": {**CONFIG["target"], "name": "other"}},  # type: ignore[dict-item]
    {"concurrency": 4},
    {"sampling": {"temperature": 1.0, "max_new_tokens": 61}},
    {"sampling": {"temperature": 0, "max_new_tokens": 99}},
    {"sampling": {"temperature": 0, "max_new_tokens": 61, "ignore_eos": True}},
]


@pytest.mark.parametrize("change", DIFFERENT)
def test_speeds_of_different_conditions_are_never_ranked_together(tmp_path: Path, change: dict[str, Any]) -> None:
    rows = tabulate_runs([make_run(tmp_path / "one"), make_run(tmp_path / "two", 1, **change)])
    groups = rows.groupby("run")["speed_group"].unique()
    assert set(groups["one"]).isdisjoint(groups["two"])
    for run in ("one", "two"):
        assert pick(rows[rows["run"] == run], "sps")["rank_best"].item() == 1


def test_acceptance_is_compared_across_machines(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "one"), make_run(tmp_path / "two", 1, **DIFFERENT[0])]
    rows = tabulate_runs(runs)
    assert rows["acceptance_group"].nunique() == 1 and rows["speed_group"].nunique() == 2
    other = tabulate_runs([runs[0], make_run(tmp_path / "three", 1, **DIFFERENT[5])])
    assert other["acceptance_group"].nunique() == 2, "another temperature"


def test_other_questions_are_not_ranked_together(tmp_path: Path) -> None:
    fewer = write_run(tmp_path / "two", made_up_trials({"pld": 0.3}, ("qa", "rag"), 3, 1))
    fewer.write_config({**CONFIG, "sampling": {"temperature": 0, "max_new_tokens": 61}})
    rows = tabulate_runs([make_run(tmp_path / "one"), read_run(fewer.path, [])])
    assert rows["speed_group"].nunique() == 2 and rows["acceptance_group"].nunique() == 1


def test_ranks_are_ranges_where_intervals_overlap(tmp_path: Path) -> None:
    methods = {"pld": 0.3, "pld_first": 0.3, "sps": 0.9}
    rows = tabulate_runs([make_run(tmp_path / "one", methods=methods), make_run(tmp_path / "two", 1, {"sps": 0.9})])
    assert rows["speed_group"].nunique() == 1
    ranks = {
        (row["run"], row["method"]): (row["rank_best"], row["rank_worst"])
        for row in rows[rows["task"] == OVERALL].to_dict("records")
    }
    assert ranks["one", "sps"] == ranks["two", "sps"] == (1, 2)
    assert ranks["one", "pld"] == ranks["one", "pld_first"] == (3, 4)
    assert all(pd.isna(ranks[run, BASELINE][0]) for run in ("one", "two"))


def test_alarmed_rows_are_marked_last_and_not_ranked(tmp_path: Path) -> None:
    slow = [
        {"engine": name, "dtype": "bfloat16", "tokens_per_second": [rate] * 3} for name, rate in (("native", 40.0), ("hf", 80.0))
    ]
    rows = tabulate_runs([make_run(tmp_path / "fine"), make_run(tmp_path / "alarmed", 1, {"sps": 0.99}, baseline=slow)])
    alarmed = rows[rows["run"] == "alarmed"]
    assert (alarmed["alarms"] != "").all() and alarmed["rank_best"].isna().all()
    assert "every speedup is too high" in alarmed["alarms"].iloc[0]
    cells = sort_rows(rows[rows["task"] == OVERALL], "speedup")
    assert list(cells["run"]) == ["fine"] * 3 + ["alarmed"] * 2 and cells["speedup"].iloc[3] > cells["speedup"].iloc[0]
    assert render_page(rows).count('class="mark" href="#alarms"') == 2 * len(alarmed)
    assert "**alarm**" in format_markdown(rows) and "- alarmed: autoregressive" in format_markdown(rows)


def test_a_yardstick_is_not_ranked_and_a_server_is_named(tmp_path: Path) -> None:
    trials = made_up_trials({"oracle": 0.9, "sps": 0.5}, ("qa", "rag"), 4)
    rows = [one.to_row() for one in trials]
    for row in rows:
        row["kind"] = "synthetic" if row["method"] == "oracle" else "measured"
        row |= {"client_first_s": 0.03, "client_last_s": row["decode_s"] + 0.03} if row["method"] == "sps" else {}
    run = write_run(tmp_path / "run", [type(trials[0])(**row) for row in rows])
    table = tabulate_runs([read_run(run.path, [])])
    assert pick(table, "oracle")["kind"].item() == "synthetic" and pd.isna(pick(table, "oracle")["rank_best"].item())
    assert pick(table, "sps")["kind"].item() == "server" and pick(table, "sps")["rank_best"].item() == 1


# What is given


def test_the_same_run_twice_is_refused(tmp_path: Path, refuse: Refuse) -> None:
    run = write_pair(tmp_path / "pair")
    write_bundle(run, tmp_path / "copy.zip", "0", without_texts=True)
    assert "pair and pair are the same run; give it once" in refuse("leaderboard", str(run), str(tmp_path / "copy.zip"))


def test_other_runs_of_one_name_are_numbered(tmp_path: Path) -> None:
    rows = tabulate_runs([make_run(tmp_path / name / "run", seed) for seed, name in enumerate("abc")])
    assert list(rows["run"].unique()) == ["run", "run #2", "run #3"]


def test_a_bundle_is_checked_before_it_is_shown(tmp_path: Path, cli: Cli, refuse: Refuse) -> None:
    write_bundle(write_pair(tmp_path / "pair"), tmp_path / "pair.zip", "0")
    status, out, _ = cli("leaderboard", str(tmp_path / "pair.zip"), "--out", str(tmp_path / "board"))
    assert status == 0 and f"page: {tmp_path / 'board/index.html'}" in out and "runs: 1, with alarms: 1" in out
    status, out, _ = cli("leaderboard", str(tmp_path / "pair.zip"), "--out", str(tmp_path / "board"), "--json")
    assert status == 0 and len(json.loads(out)["rows"]) == 14
    content = (tmp_path / "pair.zip").read_bytes()
    (tmp_path / "pair.zip").write_bytes(content[:-1])
    assert "not a zip file" in refuse("leaderboard", str(tmp_path / "pair.zip"))


def test_what_is_neither_run_nor_certificates_is_named(tmp_path: Path, refuse: Refuse) -> None:
    (tmp_path / "certificates" / "one").mkdir(parents=True)
    (tmp_path / "certificates" / "one" / "certificate.json").write_text("{}")
    (tmp_path / "photos").mkdir()
    assert f"{tmp_path}/photos: neither a run" in refuse("leaderboard", str(tmp_path / "certificates"), str(tmp_path / "photos"))
    assert "expected at least one run or bundle" in refuse("leaderboard", str(tmp_path / "certificates"))
    (tmp_path / "photos" / "index.html").write_text("mine")
    run = make_run(tmp_path / "run")
    with pytest.raises(InputError, match="that specbench did not write"):
        write_leaderboard([run], tmp_path / "photos")


# The page


class Page(HTMLParser):
    """Counts the elements of a page, and collects what it would fetch or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_fetches_nothing_and_escapes_everything(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>\"'&"
    trials = made_up_trials({"pld": 0.3, hostile: 0.6}, ("qa", "rag<b>"), 4)
    run = write_run(tmp_path / "run", trials, device={"kind": "cpu", "name": f"{hostile} | x"})
    run.write_config({**CONFIG, "target": {"name": hostile, "dtype": "bfloat16"}})
    rows = tabulate_runs([read_run(run.path, [])])
    text = render_page(rows)
    page = Page(text)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == 1 and "b" not in tags and "alert(1)</script>" not in text
    assert not [attrs for _, attrs in page.tags if {"src", "action", "onclick"} & attrs.keys()]
    assert {attrs["href"] for _, attrs in page.tags if "href" in attrs} <= {"#alarms"}
    assert not re.search(r"https?://|@import|url\(", text)
    assert r"\| x" in format_markdown(rows)


def test_every_row_can_be_filtered_and_every_table_sorted(tmp_path: Path) -> None:
    rows = tabulate_runs([make_run(tmp_path / "one"), make_run(tmp_path / "two", 1, **DIFFERENT[0])])
    page = Page(render_page(rows))
    shown = [attrs["data-f"] for tag, attrs in page.tags if tag == "tr" and "data-f" in attrs]
    assert len(shown) == 2 * len(rows) and all(re.fullmatch(r"\d+( \d+){4}", one or "") for one in shown)
    assert [attrs["name"] for tag, attrs in page.tags if tag == "select"] == ["task", "target", "device", "method", "batch"]
    regions = [attrs for tag, attrs in page.tags if attrs.get("role") == "region"]
    assert all(attrs["tabindex"] == "0" and attrs["aria-label"] for attrs in regions) and len(regions) == 4
    assert ("p", {"class": "status soft", "role": "status"}) in page.tags
    script = (ROOT / "specbench/leaderboard/board.js").read_text()
    assert "aria-sort" in script and "fetch" not in script


def test_the_files_hold_the_same_rows(tmp_path: Path) -> None:
    board = write_leaderboard([make_run(tmp_path / "one")], tmp_path / "board")
    stored = pd.read_csv(tmp_path / "board" / "leaderboard.csv")
    assert tuple(stored.columns) == COLUMNS and len(stored) == len(board.rows) == 9
    assert stored["speedup"].tolist() == pytest.approx(board.rows["speedup"].tolist(), rel=1e-5)
    assert (
        "### no such processor: fake expanded to 100m, bfloat16, batch 1, temperature 0"
        in (tmp_path / "board" / "leaderboard.md").read_text()
    )
    assert write_leaderboard([make_run(tmp_path / "two")], tmp_path / "board").page.exists(), "its own page may be written again"


@pytest.mark.full
def test_the_reference_runs_are_its_first_entries(cli: Cli, tmp_path: Path) -> None:
    paths = sorted((ROOT / "results/reference").iterdir())
    status, out, _ = cli("leaderboard", *map(str, paths), "--out", str(tmp_path / "board"))
    assert status == 0 and f"runs: {sum(RunDirectory(path).is_run() for path in paths)}" in out
