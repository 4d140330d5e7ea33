"""Strata and context buckets: the numbers of a level are those of a run that holds nothing else."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from specbench import ROOT
from specbench.analysis.loaded_run import read_run
from specbench.analysis.strata import LENGTH, MOST_LEVELS, SPEEDUPS, assign_levels, name_bucket, tabulate_strata
from specbench.analysis.summary import summarise
from specbench.errors import InputError
from specbench.records.run_directory import RunDirectory
from specbench.records.trial import Prompt, Trial, hash_ids
from specbench.report.render import render_report
from tasks.question import STRATA, parse_question
from tests.fake_run import made_up_trials, write_run

METHODS = {"pld": 0.3, "sps": 0.7}
LANGUAGES = ("French", "German", "overall")


def store(path: Path, rows: Sequence[Trial]) -> RunDirectory:
    """A run directory with these trials, written at once."""
    run = write_run(path, [])
    (path / "trials.jsonl").write_text("".join(json.dumps(one.to_row()) + "\n" for one in rows))
    return run


def prompt(one: Trial, tokens: int) -> Trial:
    return dataclasses.replace(one, prompt_tokens=tokens, prompt_sha256=hash_ids([3] * tokens))


def trials(questions: int = 12) -> list[Trial]:
    """Two tasks; three categories in mt_bench, and two turns there, the second one after a prompt of 300 tokens."""
    first = [prompt(one, 40 if one.task == "qa" else 100) for one in made_up_trials(METHODS, ["mt_bench", "qa"], questions)]
    first = [
        dataclasses.replace(one, category=("coding", "stem", "writing")[int(one.question_id) % 3])
        if one.task == "mt_bench"
        else one
        for one in first
    ]
    again = [prompt(one, 300) for one in made_up_trials(METHODS, ["mt_bench"], questions, seed=1)]
    categories = {one.question_id: one.category for one in first}
    second = [dataclasses.replace(one, turn=1, category=categories[one.question_id]) for one in again]
    return [*first, *second]


def add_prompts(run: RunDirectory, rows: Sequence[Trial]) -> None:
    for one in rows:
        if one.method == "pld" and not one.repeat and not one.turn:
            strata = {"language": LANGUAGES[int(one.question_id) % 3]}
            ids = [3] * one.prompt_tokens
            run.append_prompt(Prompt(question_id=one.question_id, turn=0, prompt_ids=ids, sha256=hash_ids(ids), strata=strata))


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    directory = store(tmp_path / "run", trials())
    add_prompts(directory, trials())
    return directory


BELONGS: dict[tuple[str, str], Callable[[Trial], bool]] = {
    ("category", "coding"): lambda one: one.category == "coding",
    ("category", "writing"): lambda one: one.category == "writing",
    ("turns per question", "1"): lambda one: one.task == "qa",
    ("turns per question", "2"): lambda one: one.task == "mt_bench",
    ("turn", "1"): lambda one: one.turn == 0,
    ("turn", "2"): lambda one: one.turn == 1,
    (LENGTH, "32–63"): lambda one: one.task == "qa",
    (LENGTH, "64–127"): lambda one: one.task == "mt_bench" and one.turn == 0,
    (LENGTH, "256–511"): lambda one: one.turn == 1,
    ("language", "German"): lambda one: int(one.question_id) % 3 == 1,
    ("language", "overall"): lambda one: int(one.question_id) % 3 == 2,
}


@pytest.mark.parametrize(("factor", "level"), BELONGS)
def test_a_levels_numbers_are_those_of_a_run_that_holds_nothing_else(
    run: RunDirectory, tmp_path: Path, factor: str, level: str
) -> None:
    rows = tabulate_strata(read_run(run.path))
    found = rows[(rows["factor"] == factor) & (rows["level"] == level)].set_index("method")
    chosen = [one for one in trials() if BELONGS[factor, level](one)]
    start = min(one.turn for one in chosen)
    alone = [dataclasses.replace(one, task="qa", category="qa", turn=one.turn - start) for one in chosen]
    summary = summarise(read_run(store(tmp_path / "alone", alone).path))
    summary = summary[summary["task"] == "qa"].set_index("method")
    assert set(found.index) == set(METHODS)
    for column in ("questions", *SPEEDUPS, "mean_accepted_tokens", "acceptance_rate"):
        for method in METHODS:
            assert found.loc[method, column] == pytest.approx(summary.loc[method, column], rel=1e-12), (column, method)


def test_levels_are_sorted_by_their_numbers_and_name_no_task(run: RunDirectory) -> None:
    rows = tabulate_strata(read_run(run.path))
    levels = [(factor, level) for factor, level in rows[["factor", "level"]].drop_duplicates().itertuples(index=False)]
    assert [level for factor, level in levels if factor == LENGTH] == ["32–63", "64–127", "256–511"]
    assert [level for factor, level in levels if factor == "category"] == ["coding", "stem", "writing"], "qa has a row already"
    assert [factor for factor, _ in levels][-1] == "language", "what the suite says comes last"


def test_buckets_go_from_one_power_of_two_to_the_next() -> None:
    assert [name_bucket(tokens) for tokens in (1, 2, 3, 1023, 1024, 32768)] == [
        *("1–1", "2–3", "2–3", "512–1023", "1024–2047", "32768–65535"),
    ]


def test_a_turn_has_autoregressive_decodings_prompt_length_whatever_each_method_continues_from(tmp_path: Path) -> None:
    own = [dataclasses.replace(one, context="own") for one in trials()]
    own = [prompt(one, 1000) if one.turn and one.method == "pld" else one for one in own]
    rows = tabulate_strata(read_run(store(tmp_path / "run", own).path))
    assert "512–1023" not in set(rows["level"]) and (rows.loc[rows["level"] == "256–511", "questions"] == 12).all()


def test_what_tells_nothing_apart_makes_no_table(tmp_path: Path) -> None:
    plain = made_up_trials(METHODS, ["mt_bench", "qa"])
    assert tabulate_strata(read_run(store(tmp_path / "plain", plain).path)).empty
    alone = [one for one in trials() if one.method == "autoregressive"]
    assert tabulate_strata(read_run(store(tmp_path / "alone", alone).path)).empty
    imported = [dataclasses.replace(one, prompt_tokens=0, prompt_sha256="", kind="imported", context="own") for one in trials()]
    assert LENGTH not in set(tabulate_strata(read_run(store(tmp_path / "imported", imported).path))["factor"])
    many = made_up_trials({"pld": 0.3}, ["qa"], MOST_LEVELS + 1)
    directory = store(tmp_path / "many", many)
    for one in many:
        if one.method == "pld" and not one.repeat:
            ids, strata = [3] * 5, {"source": str(one.question_id), "half": str(int(one.question_id) % 2)}
            directory.append_prompt(
                Prompt(question_id=one.question_id, turn=0, prompt_ids=ids, sha256=hash_ids(ids), strata=strata)
            )
    assert set(tabulate_strata(read_run(directory.path))["factor"]) == {"half"}


def test_the_report_has_the_table_and_says_what_has_no_interval(tmp_path: Path) -> None:
    rows = trials(questions=3)  # one per category
    report = render_report([store(tmp_path / "run", rows).path], tmp_path / "out")
    page, table = report.page.read_text(encoding="utf-8"), (report.out / "strata.md").read_text(encoding="utf-8")
    assert "By category, turn and prompt length" in page and page.count("no interval</span>") == 3 * len(METHODS)
    assert "A level of one question has no interval." in page and "A level of one question has no interval." in table
    data = pd.read_csv(report.out / "strata.csv")
    assert data.loc[data["factor"] == "category", "speedup_low"].isna().all()
    cell = data[(data["level"] == "32–63") & (data["method"] == "sps")].iloc[0]
    text = f"{cell['speedup']:.2f} [{cell['speedup_low']:.2f}, {cell['speedup_high']:.2f}]; {cell['mean_accepted_tokens']:.2f}"
    assert text in table and f"τ&nbsp;{cell['mean_accepted_tokens']:.2f}" in page
    assert {"strata.md", "strata.csv", "prompt_length.svg"} <= {path.name for path in report.files}


def test_the_terminals_tables_fit_and_hold_every_method(tmp_path: Path) -> None:
    methods = {f"method_{place}": 0.1 * place for place in range(1, 9)}
    rows = [prompt(one, 40 if one.task == "qa" else 100) for one in made_up_trials(methods, ["mt_bench", "qa"])]
    report = render_report([store(tmp_path / "run", rows).path], tmp_path / "out")
    tables = report.build_strata_tables(80)
    console = Console(width=80, record=True, quiet=True)
    for table in tables:
        assert console.measure(table).maximum <= 80
        console.print(table)
    assert [len(table.columns) - 1 for table in tables] == [5, 3]
    other = store(tmp_path / "other", rows)
    both = render_report([tmp_path / "run", other.path], tmp_path / "both")
    assert both.build_strata_tables(80) == [], "the table is one run's; the page has every run's"
    assert (both.out / "strata.md").read_text().count("## ") == 2


def test_no_figure_over_one_bucket_and_one_without_times(tmp_path: Path) -> None:
    one_bucket = [prompt(one, 100 + int(one.question_id) % 5) for one in made_up_trials(METHODS, ["mt_bench", "qa"])]
    report = render_report([store(tmp_path / "one", one_bucket).path], tmp_path / "out")
    assert not list(report.out.glob("prompt_length*")) and "By category" not in report.page.read_text()
    replayed = [dataclasses.replace(one, prefill_s=None, decode_s=None, kind="replayed") for one in trials()]
    report = render_report([store(tmp_path / "replayed", replayed).path], tmp_path / "replay")
    data = pd.read_csv(report.out / "strata.csv")
    assert data["speedup"].isna().all() and data["mean_accepted_tokens"].notna().all()
    assert (report.out / "prompt_length.png").exists() and "no interval" not in report.page.read_text()


@pytest.mark.parametrize(
    ("strata", "said"), [({"a\nb": "c"}, "a name in strata is"), ({"a": "\x1b"}, "strata.a is"), ([], "strata")]
)
def test_strata_that_no_table_can_show_are_refused(run: RunDirectory, strata: object, said: str) -> None:
    row = {"question_id": 1, "turn": 0, "prompt_ids": [3], "sha256": hash_ids([3]), "method": None, "strata": strata}
    (run.path / "prompts.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match=f"prompts.jsonl:1: {said}"):
        run.read_prompts()


def test_an_older_runs_prompts_have_no_strata() -> None:
    stored = ROOT / "results/reference/cpu-mini-1b"
    assert "strata" not in json.loads((stored / "prompts.jsonl").read_text().split("\n")[0])
    rows = tabulate_strata(read_run(stored))
    assert list(rows["factor"].unique()) == ["category", "turns per question", "turn", LENGTH]
    assert rows.loc[rows["factor"] == "category", "speedup_low"].isna().all(), "one question of each category"
    assert rows.loc[rows["factor"] == "turn", "speedup_low"].notna().all()


def test_no_question_may_take_a_name_of_the_reports(tmp_path: Path) -> None:
    named = list(assign_levels(read_run(store(tmp_path / "run", trials()).path)))
    assert tuple(named[: len(STRATA)]) == STRATA
    for name in STRATA:
        with pytest.raises(InputError, match=f"strata.{name}: reports show this for every question already"):
            parse_question({"question_id": 1, "category": "qa", "turns": ["Who?"], "strata": {name: "x"}})
