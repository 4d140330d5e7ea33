"""The report of fabricated runs: nothing is lost, nothing is executed."""

import dataclasses
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from specbench import ROOT
from specbench.analysis.loaded_run import read_run
from specbench.analysis.summary import summarise, write_summary
from specbench.errors import InputError
from specbench.records.certificates import Certification
from specbench.records.evidence import Evidence
from specbench.records.run_directory import RunDirectory
from specbench.records.trial import Trial
from specbench.report import tables
from specbench.report.render import render_report
from tests.fake_run import CONFIG, failed, made_up_trials, trial, write_run

pytestmark = pytest.mark.full

DESIGN_COLUMNS = [
    "target",
    "shape",
    "engine",
    "dtype",
    "device",
    "temperature",
    "method",
    "task",
    "questions",
    "repeats",
    "tokens_per_second",
    "speedup",
    "speedup_low",
    "speedup_high",
    "speedup_spec_bench",
    "mean_accepted_tokens",
    "acceptance_rate",
    "conversion",
    "identical",
    "lossless",
    "peak_memory_mb",
]


TASKS = ["mt_bench", "qa"]


def by_cell(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The rows of the summary of a run, by method and task."""
    rows = summarise(read_run(path)).to_dict("records")
    return {(str(row["method"]), str(row["task"])): {str(name): value for name, value in row.items()} for row in rows}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return write_run(tmp_path / "run", made_up_trials({"pld": 0.3, "sps": 0.7}, TASKS))


def test_the_summary_has_every_method_on_every_task(run: RunDirectory) -> None:
    summary = write_summary(run.path)
    assert set(DESIGN_COLUMNS) <= set(summary.columns)
    cells = [(method, task) for method in ("autoregressive", "pld", "sps") for task in (*TASKS, "overall")]
    assert list(summary[["method", "task"]].itertuples(index=False, name=None)) == cells
    assert set(summary["lossless"]) == {"not certified"}
    read = pd.read_csv(run.path / "summary.csv")
    assert read["speedup"].tolist() == pytest.approx(summary["speedup"].tolist(), rel=1e-5)
    assert (read["target"] + read["dtype"] + read["device"]).unique() == ["fakebfloat16no such processor"]


def test_overall_is_the_geometric_mean_of_the_tasks(run: RunDirectory) -> None:
    rows = by_cell(run.path)
    tasks = [rows["sps", task]["speedup"] for task in TASKS]
    overall = rows["sps", "overall"]
    assert overall["speedup"] == pytest.approx(math.sqrt(tasks[0] * tasks[1]))
    assert overall["speedup_low"] < overall["speedup"] < overall["speedup_high"]


def test_an_expanded_target_is_called_so_everywhere(run: RunDirectory) -> None:
    config = {**CONFIG, "target": {"name": "mini", "shape": "7b"}}
    run.write_config(config)
    report = render_report([run.path], run.path / "report")
    note = "mini expanded to 7b: acceptance is the small model's, cost the large one's."
    for name in ("table.md", "table.tex"):
        assert note in (report.out / name).read_text(encoding="utf-8")
    page = (report.out / "index.html").read_text(encoding="utf-8")
    assert "mini, expanded to 7b" in page and "Expanded: the small target" in page
    run.write_config({**CONFIG, "target": {"name": "mini", "shape": None}})
    texts = [
        path.read_text(encoding="utf-8")
        for path in render_report([run.path], report.out).files
        if path.suffix in (".md", ".tex", ".html")
    ]
    assert texts and not any("xpanded" in text for text in texts)


def test_of_several_runs_those_of_expanded_targets_are_marked(run: RunDirectory, tmp_path: Path) -> None:
    plain = write_run(tmp_path / "plain", made_up_trials({"pld": 0.3, "sps": 0.7}, TASKS))
    plain.write_config({**CONFIG, "target": {"name": "mini", "shape": None}})
    table = (render_report([run.path, plain.path], tmp_path / "report").out / "table.md").read_text(encoding="utf-8")
    assert "| run (expanded to 100m) | pld |" in table and "| plain | pld |" in table


def test_sparse_settings_leave_columns_empty(tmp_path: Path) -> None:
    directory = write_run(tmp_path, made_up_trials({"pld": 0.3}, ["qa"]))
    directory.write_config({"target": {"name": "somebody/model"}, "engine": {"hf": None}, "sampling": {"temperature": 1.0}})
    row = by_cell(tmp_path)["pld", "qa"]
    assert (row["target"], row["shape"], row["engine"], row["lossless"]) == (
        "somebody/model",
        "",
        "hf",
        "not certified",
    )


def test_methods_without_times_have_no_rank(tmp_path: Path) -> None:
    trials = made_up_trials({"pld": 0.3, "sps": 0.6, "rest": 0.5}, ["qa"])
    replayed = [dataclasses.replace(one, prefill_s=None, decode_s=None, kind="replayed") for one in trials]
    untimed = [dataclasses.replace(one, error="gone") if one.method == "rest" else one for one in trials]
    rows = summarise(read_run(write_run(tmp_path, untimed).path)).set_index("method")
    assert rows.loc["rest", ["rank_best", "rank_worst"]].isna().to_numpy().all()
    assert rows["rank_worst"].max() == 3
    every = summarise(read_run(write_run(tmp_path / "all", replayed).path))
    assert every["rank_best"].isna().all()


FIGURES = ("forest", "speedup", "conversion", "acceptance", "questions")


def test_render_writes_everything(run: RunDirectory, tmp_path: Path) -> None:
    report = render_report([run.path], tmp_path / "out")
    written = {path.name for path in (tmp_path / "out").iterdir()}
    figures = {f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg", "pdf")}
    data = {"summary.csv", "alarms.csv", "acceptance.csv", "conventions.csv"}
    assert written == figures | data | {"index.html", "table.md", "table.tex"}
    assert {path.name for path in report.files} == written
    assert len(report.build_tables(100)) == 2 and report.page.exists()


def test_the_estimators_of_a_speedup_stand_side_by_side(run: RunDirectory, tmp_path: Path) -> None:
    report = render_report([run.path], tmp_path / "out")
    html = "".join(report.page.read_text().split("\n"))
    for row in report.summary.to_dict("records"):
        names = ("speedup", "speedup_pooled", "speedup_median", "speedup_decode", "speedup_spec_bench")
        assert "".join(f"<td>{row[name]:.2f}</td>" for name in names) in html, row


def test_several_runs_say_which_row_is_whose(run: RunDirectory, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", made_up_trials({"pld": 0.3}, ["qa"], seed=1))
    report = render_report([run.path, other.path], tmp_path / "out")
    assert set(report.summary["run"]) == {"run", "other"}
    assert (report.out / "table.md").read_text().startswith("| run | method |")
    assert (tmp_path / "out" / "other-speedup.svg").exists()
    assert {str(table.title).split(":")[0] for table in report.build_tables(100)[::2]} == {"run", "other"}
    assert {alarm.split(":")[0] for alarm in report.alarms} == {"run", "other"}
    rows = pd.read_csv(report.out / "alarms.csv")
    assert list(rows) == ["run", "level", "method", "task", "message"] and len(rows) == len(report.alarms)
    assert all(message in alarm for message, alarm in zip(rows["message"], report.alarms, strict=True))
    with pytest.raises(InputError, match="different names"):
        render_report([run.path, run.path], tmp_path / "twice")


class _Page(HTMLParser):
    """Collects tags and everything a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        links = [value for name, value in attrs if value and name in ("src", "href", "xlink:href", "data")]
        self.fetched += [link for link in links if not link.startswith("#")]


def test_the_page_runs_and_fetches_nothing(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    trials = made_up_trials({f"pld{evil}": 0.3}, [f"qa{evil}"], questions=2)
    directory = write_run(tmp_path / "run", trials, note=evil)
    for method in ("autoregressive", f"pld{evil}"):
        directory.append_text(method, 0, 0, f"What is {evil}?{method}", None)
    html = render_report([directory.path], tmp_path / "out").page.read_text()
    page = _Page()
    page.feed(html)
    assert page.tags.count("script") == 1 and evil not in html, "the one that sorts tables"
    assert "What is &lt;script&gt;" in html and "1 of 1 differ" in html
    assert page.fetched == [] and "url(http" not in html and "@import" not in html
    assert page.tags.count("figure") == len(FIGURES) - 1, "the page draws forest and speedup itself, in one figure"


def test_examples_are_left_out_without_texts(run: RunDirectory, tmp_path: Path) -> None:
    assert "Example outputs" not in render_report([run.path], tmp_path / "out").page.read_text()


def test_failures_count_as_one_beside_the_complete_cases(tmp_path: Path) -> None:
    trials = [trial("autoregressive", [1] * 4, 4.0, question_id=q) for q in (1, 2)]
    trials += [trial("pld", [2, 2], 1.0, question_id=1), failed("pld", question_id=2)]
    row = by_cell(write_run(tmp_path, trials).path)["pld", "qa"]
    assert row["speedup"] == pytest.approx(4)
    assert row["speedup_with_failures"] == pytest.approx(2), "sqrt(4 * 1)"


def test_a_method_that_always_fails_still_has_its_row(tmp_path: Path) -> None:
    trials = [trial("autoregressive", [1] * 4, 1.0), failed("pld")]
    report = render_report([write_run(tmp_path / "run", trials).path], tmp_path / "out")
    assert "| pld | – |" in (report.out / "table.md").read_text()
    assert report.summary.set_index(["method", "task"]).loc[("pld", "qa"), "errors"] == 1


@pytest.mark.parametrize("trials", [[trial("autoregressive", [1], 1.0)], [failed("autoregressive")],
                                    [failed("autoregressive"), trial("pld", [2], 1.0)]])  # fmt: skip
def test_a_run_with_next_to_nothing_still_has_its_report(tmp_path: Path, trials: list[Trial]) -> None:
    report = render_report([write_run(tmp_path / "run", trials).path], tmp_path / "out")
    assert set(report.summary["method"]) == {one.method for one in trials}


def test_each_row_names_its_engine_and_tasks_keep_the_order_of_the_config(tmp_path: Path) -> None:
    labels = ("autoregressive", "pld", "pld@hf")
    trials = [trial(label, [1], 1.0, task=task, question_id=task) for label in labels for task in ("a", "b")]
    directory = write_run(tmp_path, trials)
    directory.write_config({"engine": {"native": {}, "hf": {}}, "task": {"x": {"name": "b"}, "y": {"name": "a"}}})
    rows = summarise(read_run(tmp_path))
    assert rows["task"].tolist()[:3] == ["b", "a", "overall"]
    assert rows.set_index("method")["engine"].to_dict() == {
        "autoregressive": "native", "pld": "native", "pld@hf": "hf",
    }  # fmt: skip


def test_accuracy_is_the_mean_score_of_the_answers_that_have_one(tmp_path: Path) -> None:
    directory = write_run(tmp_path, [trial("autoregressive", [1], 1.0, question_id=q) for q in (1, 2, 3)])
    rows = [{"method": "autoregressive", "question_id": q, "turn": 0, "text": "", "score": score}
            for q, score in ((1, 1.0), (2, 0.5), (3, None))]  # fmt: skip
    (directory.path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert summarise(read_run(tmp_path))["accuracy"].tolist() == [0.75, 0.75]


def test_intervals_are_written_one_way(run: RunDirectory, tmp_path: Path) -> None:
    report = render_report([run.path], tmp_path / "out")
    row: Any = report.summary.set_index(["method", "task"]).loc[("pld", "overall")]
    low, high = f"{row['speedup_low']:.2f}", f"{row['speedup_high']:.2f}"
    assert f"[{low}, {high}]" in (report.out / "table.md").read_text()
    assert f">[{low}, {high}]<" in report.page.read_text()
    console = Console(width=140)
    with console.capture() as printed:
        console.print(report.build_tables(140)[0])
    assert f"[{low}, {high}]" in printed.get()
    assert f"{low}–" not in printed.get() + report.page.read_text()


def test_the_page_writes_settings_in_words(run: RunDirectory, tmp_path: Path) -> None:
    static = {"_target_": "methods.rest.Rest", "longest": 16, "cut": None}
    draft = {"_target_": "specbench.models.load.load_draft", "path": "zoo"}
    settings = {
        "_target_": "x.Y",
        "filler": None,
        "full": False,
        "tree": {"paths": [[0], [0, 1]]},
        "static": static,
        "draft": draft,
    }
    run.write_config({**run.read_config(), "method": {"pld": settings, "sps": {}, "eagle": {}}})
    page = render_report([run.path], tmp_path / "out").page.read_text()
    line = "filler none, full no, tree (paths 0 0-1), static Rest (longest 16, cut none), draft (path zoo)"
    assert f'<td class="text">x.Y</td><td class="text settings">{line}</td>' in page


def test_a_method_that_keeps_state_is_marked(tmp_path: Path) -> None:
    trials = [trial("autoregressive", [1], 1.0), trial("token_recycling", [1], 1.0, state="warm")]
    report = render_report([write_run(tmp_path / "run", trials).path], tmp_path / "out")
    assert "| token_recycling (warm) |" in (report.out / "table.md").read_text()
    assert ">token_<wbr>recycling (warm)</th>" in report.page.read_text()


def test_alarms_come_first_and_the_page_has_every_part(run: RunDirectory, tmp_path: Path) -> None:
    html = render_report([run.path], tmp_path / "out").page.read_text()
    parts = ["Alarms", "Summary", "Speedup", "Figures", "Losslessness", "Time, memory and energy", "Every method on every task",
             "Settings and provenance"]  # fmt: skip
    assert re.findall("<h2>(.*?)</h2>", html) == [*parts, "Terms"]
    assert "Fastest: sps, " in html and "Not measured here: energy." in html and "peak memory, MB" in html


def test_energy_is_shown_beside_autoregressive_s_where_it_is_measured(tmp_path: Path) -> None:
    trials = [trial("autoregressive", [1] * 4, 1.0, energy_j=10.0), trial("pld", [2, 2], 0.5, energy_j=5.0)]
    html = render_report([write_run(tmp_path / "run", trials).path], tmp_path / "out").page.read_text()
    assert "<td>1.000</td><td>0.50</td>" in html, "5 J for 5 tokens, half of 10 J"


def test_the_page_says_what_a_certificate_followed(run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Certification("exact", "2026-11-22", Evidence(14, 40), same_version=True)
    monkeypatch.setattr("specbench.analysis.loaded_run.find_certifications", lambda *_: {"pld": seen})
    report = render_report([run.path], tmp_path / "out")
    html = report.page.read_text()
    assert "14 texts of at most 40 tokens, 2026-11-22" in html and "14 texts, ≤&nbsp;40&nbsp;tokens" in html
    assert "notice: the run: answers of up to 61 tokens; the certificates checked texts of at most 40" in map(str, report.alarms)


def test_a_headline_names_those_that_may_be_the_fastest_too(tmp_path: Path) -> None:
    trials = made_up_trials({"pld": 0.1, "sps": 0.7, "sps_again": 0.7}, TASKS)
    html = render_report([write_run(tmp_path / "run", trials).path], tmp_path / "out").page.read_text()
    assert re.search(r"Fastest: sps.* times autoregressive decoding. Not significantly slower: sps[_again]*\.", html)


def test_a_headline_never_calls_a_slower_method_the_fastest(tmp_path: Path) -> None:
    slow = write_run(tmp_path / "slow", made_up_trials({"pld": 0.01}, TASKS))
    html = render_report([slow.path], tmp_path / "out").page.read_text()
    assert "No method is faster than autoregressive decoding." in html and "Fastest" not in html


def test_a_headline_says_if_the_fastest_may_be_no_faster(tmp_path: Path) -> None:
    times = {"autoregressive": (1.0, 1.0), "pld": (0.8, 1.2)}  # seconds on odd and even questions
    trials = [trial(name, [1] * 4, times[name][q % 2], question_id=q) for q in range(8) for name in times]
    html = render_report([write_run(tmp_path / "even", trials).path], tmp_path / "out").page.read_text()
    assert re.search(r"Fastest: pld, 1\.02 \[.*\] times autoregressive decoding\. Its interval includes 1\.", html)


def test_a_yardstick_is_marked(tmp_path: Path) -> None:
    trials = [trial("autoregressive", [1], 1.0), trial("oracle", [3, 3], 1.0, kind="synthetic")]
    report = render_report([write_run(tmp_path / "run", trials).path], tmp_path / "out")
    assert "| oracle (synthetic) |" in (report.out / "table.md").read_text()
    for figure in ("speedup", "conversion", "acceptance"):
        assert "oracle (synthetic)" in (report.out / f"{figure}.svg").read_text(), figure
    assert report.summary.set_index(["method", "task"])["kind"].to_dict()["oracle", "qa"] == "synthetic"


def test_latex_escapes_and_markdown_keeps_its_columns(tmp_path: Path) -> None:
    summary = summarise(read_run(write_run(tmp_path, made_up_trials({"a_b|c&d": 0.5}, ["qa"], 3)).path))
    assert r"a\_b|c\&d" in tables.format_latex(summary)
    assert r"a_b\|c&d" in tables.format_markdown(summary)


def test_a_directory_without_trials_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no trial"):
        read_run(write_run(tmp_path, []).path)


def test_a_report_loads_no_model() -> None:
    """Nor does composing settings: a mistake is told before torch is imported, which takes seconds."""
    rooms = [f"specbench.{room}" for room in ("records", "analysis", "report", "paper")]
    code = f"""
import importlib, pkgutil, sys
for name in {rooms}:
    room = importlib.import_module(name)
    for module in pkgutil.iter_modules(room.__path__):
        importlib.import_module(f"{{name}}.{{module.name}}")
import specbench.setup.compose, specbench.setup.rules, specbench.setup.settings
sys.exit("torch" in sys.modules or "transformers" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("task", ["method", "run", "rank", "identical", "lossless", "mean accepted tokens", "tokens/s"])
def test_a_task_may_be_called_like_a_column(tmp_path: Path, task: str) -> None:
    trials = made_up_trials({"pld": 0.4}, (task, "qa"), questions=3)
    summary = summarise(read_run(write_run(tmp_path, trials).path))
    first_task, second_task = sorted((task, "qa"))
    header, _, first, second, *_ = tables.format_markdown(summary).splitlines()
    assert (
        header
        == f"| method | {first_task} | {second_task} | overall | rank | mean accepted tokens | tokens/s | identical | lossless |"
    )
    assert first.startswith("| pld | ") and second.startswith("| autoregressive | 1.00 | 1.00 | 1.00 |")
    assert tables.format_latex(summary).count("&") == 3 * 8, "a header and two methods"
