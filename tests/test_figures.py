"""The figures of fabricated runs: their looks, their legends, and which of them are made."""

import dataclasses
import re
from colorsys import rgb_to_hls
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from specbench import ROOT
from specbench.analysis.loaded_run import read_run
from specbench.analysis.summary import summarise
from specbench.records.run_directory import RunDirectory
from specbench.report.canvas import add_legend, create_canvas, fold_label, use_figure_settings
from specbench.report.figures import plot_task_speedups
from specbench.report.palette import GREY, KNOWN, assign_looks, list_colours, strip_variant
from specbench.report.render import render_report
from tests.fake_run import CONFIG, made_up_trials, write_run

pytestmark = pytest.mark.full

TASKS = ["mt_bench", "qa"]


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return write_run(tmp_path / "run", made_up_trials({"pld": 0.3, "sps": 0.7}, TASKS))


def test_no_legend_is_wider_than_its_figure() -> None:
    long = {f"a_method_with_a_very_long_name_indeed_{at}": "" for at in range(14)}
    with use_figure_settings():
        figure, axes = create_canvas(9, 5)
        for name in long:
            axes.plot([1], [1], label=name)
        add_legend(figure, axes)
        figure.draw_without_rendering()
        (box,) = figure.legends
        assert figure.get_figheight() > 5, "it has grown by the legend's rows"
        assert box.get_window_extent().width <= figure.bbox.width


def test_a_method_looks_the_same_in_every_report() -> None:
    presets = [path.stem for path in (ROOT / "conf/method").glob("*.yaml")]
    labels = {name: name for name in ["autoregressive", "mine", *presets]}
    together = assign_looks(labels)
    known = [name for name in labels if strip_variant(name) in KNOWN]
    assert len(known) > 40 and all(assign_looks({name: name})[name] == together[name] for name in known)
    assert together["autoregressive"].colour == GREY
    looks = {(look.colour, look.marker, look.fill) for look in together.values()}
    assert len(looks) == len(labels), "no two presets look the same"


def test_known_methods_have_colours_of_their_own() -> None:
    assert len({look.colour for look in assign_looks({name: name for name in KNOWN}).values()}) == len(KNOWN) + 1, "and grey"
    looks = assign_looks({name: name for name in ["pld", "pld_spec_bench", "pld@hf", "pld_spec_bench@hf"]})
    hues = {round(rgb_to_hls(*to_rgb(look.colour))[0], 1) for look in looks.values() if look.colour != GREY}
    assert len(hues) == 1 and len({look.colour for look in looks.values()}) == 5, "a variant has a shade of its method's colour"
    assert len({look.fill for name, look in looks.items() if name != "autoregressive"}) == 4


def test_other_methods_share_no_look() -> None:
    looks = assign_looks({f"n{at}": f"n{at}" for at in range(30)})
    assert len({(look.colour, look.fill) for name, look in looks.items() if name != "autoregressive"}) == 30


@pytest.mark.parametrize(
    "names", [[f"n{at}" for at in range(25)], [*KNOWN, "mine", "yours", "sps_tli", "pld_vllm", "suffix_cold"]]
)
def test_methods_that_stand_together_have_colours_of_their_own(names: list[str]) -> None:
    looks = assign_looks({name: name for name in names})
    assert len({look.colour for look in looks.values()}) == len(names) + 1, "and grey"
    assert {look.colour for look in looks.values()} <= set(list_colours()), "the page knows them"


def test_long_labels_fold_and_short_ones_do_not() -> None:
    assert fold_label("token_recycling_warm (warm)") == "token_recycling_warm (warm)"
    assert fold_label("my_own_method_of_rather_a_long_name") == "my_own_method_of_rather_a_\nlong_name"
    assert fold_label("x" * 40) == "x" * 40


def test_an_interval_of_few_questions_presses_no_points_together(run: RunDirectory) -> None:
    summary = summarise(read_run(run.path))
    summary["speedup_high"] = 100.0
    with use_figure_settings():
        (axes,) = plot_task_speedups(summary, assign_looks({name: name for name in summary["method"].unique()})).axes
    assert axes.get_ylim()[1] < 2 * summary["speedup"].max()
    assert sum(line.get_marker() == "^" and np.size(line.get_xdata()) == 3 for line in axes.lines) >= 2, (
        "an arrow on every interval"
    )


def test_sizes_of_one_methods_tree_make_a_figure_and_name_the_best(tmp_path: Path) -> None:
    sized = {f"n{nodes}": {"_target_": "methods.eagle.Eagle2", "total_tokens": nodes, "depth": 3} for nodes in (8, 16, 32)}
    trials = made_up_trials({"n8": 0.3, "n16": 0.8, "n32": 0.5, "other": 0.9}, ["qa", "rag"])
    run = write_run(tmp_path / "sized", trials)
    run.write_config({**CONFIG, "method": {**sized, "other": {"_target_": "methods.pld.PromptLookup"}}})
    report = render_report([run.path], tmp_path / "report")
    assert (tmp_path / "report" / "tree_size.png").stat().st_size > 1000
    assert "The fastest here: n16, 16 nodes and depth 3" in report.page.read_text()
    plain = write_run(tmp_path / "plain", made_up_trials({"n8": 0.3}, ["qa"]))
    render_report([plain.path], tmp_path / "none")
    assert not (tmp_path / "none" / "tree_size.png").exists()


def test_a_profiled_run_shows_where_a_step_spends_its_time(tmp_path: Path) -> None:
    trials = [
        dataclasses.replace(one, draft_s=0.2 * (one.decode_s or 0), verify_s=0.7 * (one.decode_s or 0))
        for one in made_up_trials({"pld": 0.3, "sps": 0.8}, ["qa", "rag"])
    ]
    report = render_report([write_run(tmp_path / "profiled", trials).path], tmp_path / "report")
    assert (tmp_path / "report" / "time.png").stat().st_size > 1000
    split = pd.read_csv(tmp_path / "report" / "time.csv").set_index("method")
    assert split.loc["autoregressive", "step"] == 1
    assert "What a step of every method costs" in report.page.read_text()


def test_runs_that_one_setting_tells_apart_make_a_figure_over_it(tmp_path: Path) -> None:
    runs = []
    for temperature in (0, 0.5, 1):
        directory = write_run(
            tmp_path / f"t{temperature}", made_up_trials({"pld": 0.3, "sps": 0.6}, TASKS, seed=int(2 * temperature))
        )
        directory.write_config(CONFIG | {"sampling": {"temperature": temperature}})
        runs.append(directory.path)
    report = render_report(runs, tmp_path / "out")
    assert {"temperature.png", "temperature.svg"} <= {path.name for path in report.files}
    assert "mean accepted tokens, over temperature;" in report.page.read_text()
    warm = report.summary[report.summary["temperature"] == 1]
    drawn = warm["method"] != "autoregressive"
    assert (warm["speedup_seed_sd"].notna() == drawn).all(), "two repeats, each with a seed of its own"
    assert report.summary.loc[report.summary["temperature"] == 0, "speedup_seed_sd"].isna().all()
    table = (tmp_path / "out" / "table.md").read_text()
    assert re.search(r"\| \d\.\d\d ± \d\.\d\d \[", table) and "2 seeds" in report.page.read_text() and "1.00 ±" not in table
    assert r" $\pm$ " in (tmp_path / "out" / "table.tex").read_text()
    assert not any(path.name == "temperature.png" for path in render_report(runs[:1], tmp_path / "one").files)
