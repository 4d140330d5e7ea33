"""Turn run directories into tables, figures and one HTML page. Pure functions of files, without a model or torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
from markupsafe import Markup
from rich.table import Table

from specbench.analysis import metrics
from specbench.analysis.engines import tabulate_engines
from specbench.analysis.loaded_run import LoadedRun, order_methods, pick_trial, read_run
from specbench.analysis.strata import LENGTH, tabulate_strata
from specbench.analysis.summary import format_csv, summarise
from specbench.errors import InputError
from specbench.records.files import write_atomic
from specbench.report import boxes, canvas, engines, figures, forest, palette, strata, tables, terminal, tree_sizes
from specbench.report.across import Comparison, compare_runs
from specbench.report.alarms import find_alarms
from specbench.report.folder import claim_folder
from specbench.report.page import Across, Section, render_page

TABLES = ("table.md", "table.tex", "strata.md", "batches.md", "engines.md", "load.md")
FILES = (
    *TABLES,
    "summary.csv",
    "strata.csv",
    "batches.csv",
    "engines.csv",
    "load.csv",
    "alarms.csv",
    "acceptance.csv",
    "conventions.csv",
    "time.csv",
)
FILES_ALONE = ("forest", "speedup")  # the page draws both itself, as forest.Panel
CAPTIONS = {
    "questions": "Boxes span the quartiles over questions. Whiskers reach up to 1.5 times the interquartile range.",
    "prompt_length": "Speedup and mean accepted tokens over the length of the prompt, in buckets from one power of two to the"
    " next. The number of questions is below each bucket. Different buckets hold different tasks.",
    "conversion": "Speedup against mean accepted tokens. On the line ×0.8, the speedup is 0.8 times the mean"
    " accepted tokens: the conversion is 0.8. The lines leave out prefill, which is one more forward per turn.",
    "time": "What a step of every method costs in steps of autoregressive decoding, and the tokens it commits. A method is"
    " faster if its diamond is to the right of its bar. Measured with profiling, which synchronises the device at every step.",
    "acceptance": "Acceptance by draft position over all tasks. A position is drawn if at least"
    f" {figures.LEAST_REACHED} steps reach it.",
}


@dataclass(frozen=True)
class Report:
    """The report's folder, the files in it, and what they say."""

    out: Path
    files: list[Path]
    summary: pd.DataFrame  # the rows of summary.csv
    alarms: list[str]
    strata: list[pd.DataFrame]  # of every run that has some, the rows of strata.csv

    @property
    def page(self) -> Path:
        """The HTML page to open."""
        return self.out / "index.html"

    def build_tables(self, width: int) -> list[Table]:
        """Return the headline tables of every run, for a terminal of so many columns."""
        groups = list(self.summary.groupby("run", sort=False))
        named = {str(run): str(run) if len(groups) > 1 else "" for run, _ in groups}
        return [table for run, rows in groups for table in terminal.build_headline_tables(rows, width, named[str(run)])]

    def build_strata_tables(self, width: int) -> list[Table]:
        """Return the second table of a report on one run, for a terminal of so many columns."""
        alone = self.summary["run"].nunique() == 1
        return [table for rows in self.strata if alone for table in strata.build_strata_tables(rows, width)]


def render_report(run_dirs: Sequence[Path], out: Path) -> Report:
    """Write index.html, the tables, the CSV files and the figures into `out`; time.csv only for profiled runs.

    Raises InputError when a directory is not a run, when none is given, or when two have the same name.
    """
    runs = [read_run(path) for path in run_dirs]
    if not runs or len({run.name for run in runs}) < len(runs):
        raise InputError(f"expected run directories of different names, got {[str(path) for path in run_dirs]}")
    claim_folder(out, FILES)
    style = palette.assign_looks({method: tables.format_label(pick_trial(runs, method)) for method in order_methods(runs)})
    drawn = [_build_section(run, style, out, f"{run.name}-" if len(runs) > 1 else "") for run in runs]
    sections = [section for section, _ in drawn]
    summary = pd.concat([section.summary for section in sections], ignore_index=True)
    positions = pd.concat([metrics.tabulate_positions(run.trials).assign(run=run.name) for run in runs], ignore_index=True)
    splits = pd.concat([metrics.split_step_time(run.turns).assign(run=run.name) for run in runs], ignore_index=True)
    counted = pd.concat([metrics.tabulate_conventions(run.trials).assign(run=run.name) for run in runs], ignore_index=True)
    split_up = [section.strata for section in sections if len(section.strata)]
    agreed = pd.concat([tabulate_engines(run).assign(run=run.name) for run in runs], ignore_index=True)
    warned = [{"run": section.run.name, **asdict(alarm)} for section in sections for alarm in section.alarms]
    with canvas.use_figure_settings():
        comparison = compare_runs(runs, summary, style)
        across, pictures = _draw_across(comparison, out)
    contents = {
        "index.html": render_page(sections, across),
        "table.md": tables.format_markdown(summary),
        "table.tex": tables.format_latex(summary),
        "summary.csv": format_csv(summary),
        "alarms.csv": format_csv(pd.DataFrame(warned, columns=["run", "level", "method", "task", "message"])),
        "acceptance.csv": format_csv(positions),
        "conventions.csv": format_csv(counted),
        **({"time.csv": format_csv(splits)} if len(splits) else {}),
        **(_format_strata(split_up) if split_up else {}),
        **_format_engines(sections, agreed),
        **comparison.files,
    }
    for name, content in contents.items():
        write_atomic(out / name, content)
    named = {section.run.name: f"{section.run.name}: " * (len(runs) > 1) for section in sections}
    raised = [f"{named[section.run.name]}{alarm}" for section in sections for alarm in section.alarms]
    written = [*(path for _, paths in drawn for path in paths), *pictures]
    return Report(out, [*(out / name for name in contents), *written], summary, raised, split_up)


def _format_strata(split_up: Sequence[pd.DataFrame]) -> dict[str, str]:
    """Return strata.md and strata.csv. split_up: of every run that has strata."""
    names = [f"## {rows['run'].iloc[0]}\n\n" * (len(split_up) > 1) for rows in split_up]
    texts = [name + strata.format_strata(rows) for name, rows in zip(names, split_up, strict=True)]
    return {"strata.md": "\n".join(texts), "strata.csv": format_csv(pd.concat(split_up).drop(columns="label"))}


def _format_engines(sections: Sequence[Section], agreed: pd.DataFrame) -> dict[str, str]:
    """Return engines.md and engines.csv, if a run has several engines or a server."""
    shown = [section for section in sections if section.engines]
    if not shown:
        return {}
    names = [f"## {section.run.name}\n\n" * (len(shown) > 1) for section in shown]
    texts = [name + engines.format_engines(*section.engines) for name, section in zip(names, shown, strict=True)]
    return {"engines.md": "\n".join(texts), "engines.csv": format_csv(agreed)}


def _draw_across(comparison: Comparison, out: Path) -> tuple[Across, list[Path]]:
    """Return what the page shows of all runs together, and the files of its figure."""
    if comparison.figure is None:
        return Across(table=comparison.words), []
    paths = canvas.save_figure(comparison.figure, out / str(comparison.setting))
    svg = Markup(canvas.inline_svg(canvas.render_svg(comparison.figure)))
    return Across([(comparison.caption, svg)], comparison.words), paths


def _build_section(run: LoadedRun, style: palette.Style, out: Path, prefix: str) -> tuple[Section, list[Path]]:
    summary, levels = summarise(run), tabulate_strata(run)
    levels = levels.assign(run=run.name, label=[style[method].label for method in levels["method"]])
    with canvas.use_figure_settings():
        latencies = metrics.compute_question_latencies(metrics.pair_with_baseline(metrics.build_question_frame(run.turns)))
        plots = {
            "forest": figures.plot_forest(summary, style),
            "speedup": figures.plot_task_speedups(summary, style),
            "conversion": figures.plot_conversion(summary, style),
            "acceptance": figures.plot_acceptance(metrics.tabulate_positions(run.trials), style),
        }
        if len(buckets := levels[levels["factor"] == LENGTH]) and buckets["level"].nunique() > 1:
            plots["prompt_length"] = figures.plot_prompt_lengths(buckets, style)
        if len(latencies):
            plots["questions"] = boxes.plot_questions(latencies, style)
        captions = dict(CAPTIONS)
        if len(split := metrics.split_step_time(run.turns)) > 1:
            plots["time"] = figures.plot_step_time(split, style)
        if len(sizes := tree_sizes.tabulate_tree_sizes(run, summary)):
            plots["tree_size"] = tree_sizes.plot_tree_sizes(sizes)
            captions["tree_size"] = tree_sizes.describe_best_size(sizes)
        paths = [path for name, figure in plots.items() for path in canvas.save_figure(figure, out / f"{prefix}{name}")]
        shown = {name: figure for name, figure in plots.items() if name not in FILES_ALONE}
        inlined = [(captions[name], canvas.inline_svg(canvas.render_svg(figure))) for name, figure in shown.items()]
    looks = {method: style[method] for method in summary["method"].unique()}
    panels = forest.build_panels(summary, style)
    tables_ = engines.build_tables(run, summary)
    return Section(run, summary, find_alarms(run, summary), inlined, tables_, levels, looks, panels), paths
