"""The commands about finished runs: report, compare, replay, paper."""

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from specbench.cli.output import Result, get_width
from specbench.cli.parser import Command, Parser, add_config_dir, check_file, parse_folder
from specbench.errors import InputError, suggest_choices
from specbench.report.folder import choose_folder

if TYPE_CHECKING:
    from rich.table import Table

    from specbench.compare.comparison import Comparison

UNDECIDED = ("fail", "pass")  # what an undecided comparison counts as


def add_report_options(parser: Parser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="or a folder of runs, such as a sweep's")
    parser.add_argument("--out", type=parse_folder, help="default: reports/<name of the first RUN>")
    parser.add_argument("--serve", nargs="?", const=8000, type=int, metavar="PORT", help="show a run in progress (default: 8000)")


def report(options: Namespace) -> Result:
    """Print the tables of finished runs, and render their page with figures."""
    from specbench.records.run_directory import expand_paths

    if options.serve is not None:
        from specbench.cli.serve import serve_run

        serve_run(options.runs[0], options.serve)
    out = options.out or choose_folder(options.runs[0])
    return report_runs(expand_paths(options.runs), out, strata=True)


def report_runs(runs: list[Path], out: Path, strata: bool = False, problem: str = "") -> Result:
    """Render the report of runs into a folder. strata: also show the table of strata. problem: see `Result`."""
    from specbench.running.progress import Display

    with Display(stage="drawing the report"):
        from specbench.report.render import render_report

        report = render_report(runs, out)
    width = get_width()
    tables = [*report.build_tables(width), *(report.build_strata_tables(width) if strata else [])]
    document = {
        "runs": runs,
        "page": report.page,
        "files": report.files,
        "rows": report.summary,
        "strata": report.strata,
        "alarms": report.alarms,
    }
    return Result(document, [*tables, *report.alarms, f"page: {report.page}"], problem=problem)


def add_compare_options(parser: Parser) -> None:
    paths = "a run, or a folder of runs, of which the latest ten count; and the run to judge"
    parser.add_argument("words", nargs="*", metavar="REFERENCE RUN", help=paths)
    against = "run this checkout and that commit, branch or tag in turns; then the words are KEY=VALUE settings of the run"
    parser.add_argument("--against", metavar="GIT-REF", help=against)
    differing = "a setting that may differ, such as threads"
    parser.add_argument("--factor", action="append", default=[], metavar="NAME", help=differing)
    added = "copy a run that passed into the folder REFERENCE, also the first one"
    parser.add_argument("--add", action="store_true", help=added)
    for name, what in (("junit", "write one test per ratio"), ("markdown", "write a summary, for a job's page")):
        parser.add_argument(f"--{name}", type=Path, metavar="FILE", help=what)
    parser.add_argument("--undecided", default="pass", metavar="fail|pass", help="exit status of an undecided comparison: 1 or 0")
    add_config_dir(parser)


def compare(options: Namespace) -> Result:
    """Check that a run gives the texts and the speed of a reference (exit status 1 if not)."""
    if options.undecided not in UNDECIDED:
        raise InputError(f"--undecided {options.undecided}: expected {suggest_choices(options.undecided, UNDECIDED)}")
    for name in ("junit", "markdown"):
        check_file(f"--{name}", getattr(options, name))
    if options.against is not None:
        return _compare_checkouts(options)
    if len(options.words) != 2:
        raise InputError(f"expected REFERENCE and RUN, got {len(options.words)} words; see specbench compare --help")
    from specbench.compare.comparison import accept_first_reference, compare_runs

    reference, run = map(Path, options.words)
    if options.add:
        _check_folder(reference, run)
    if options.add and not any(reference.glob("*/config.yaml")):
        result = accept_first_reference(run)
    else:
        result = compare_runs(reference, run, options.factor)
    return _judge(result, options, _add_run(result, reference, run) if options.add else [])


def _compare_checkouts(options: Namespace) -> Result:
    if options.add or options.factor:
        raise InputError("--against runs both versions: --add and --factor are about stored runs")
    from specbench.setup.words import check_words

    overrides = check_words(options.words, options.config_dir)
    from specbench.compare.against import run_both
    from specbench.compare.comparison import compare_checkouts

    return _judge(compare_checkouts(run_both(options.against, overrides, options.config_dir)), options, [])


def _add_run(result: "Comparison", reference: Path, run: Path) -> list[str]:
    """Copy a run that passed to the references. An undecided one may be slower, and the next one slower than that."""
    from specbench.records.run_directory import RunDirectory

    if result.verdict != "pass":
        return [f"not added to {reference}: only a run that passed becomes a reference"]
    RunDirectory(run).copy_to(reference / run.resolve().name)
    return []


def _judge(result: "Comparison", options: Namespace, notes: list[str]) -> Result:
    """Write the files that the options name, and return the comparison. notes: come last."""
    from specbench.compare import render
    from specbench.records.files import write_atomic

    if options.junit:
        render.write_junit(result, options.junit)
    if options.markdown:
        write_atomic(options.markdown, render.format_comparison(result))
    tables = [render.build_comparison_table(result)] if result.reference else []
    shown: list[Table | str] = [
        *filter(None, [result.power]),
        render.format_title(result),
        *tables,
        *render.format_notes(result),
        *notes,
    ]
    no = result.verdict == "fail" or (result.verdict == "undecided" and options.undecided == "fail")
    return Result(render.build_document(result), shown, status=int(no))


def _check_folder(folder: Path, run: Path) -> None:
    """Raise InputError for a run that cannot be added to a folder of references."""
    from specbench.analysis.loaded_run import read_run

    if missing := sum(read_run(run).missing.values()):
        raise InputError(f"--add: {run} is not finished: {missing} turns are missing; run the same command again to resume")
    name = run.resolve().name
    if (folder / name).exists() or (folder / "config.yaml").exists():
        raise InputError(f"--add: {folder} is a run itself, or already holds one called {name}")


def add_replay_options(parser: Parser) -> None:
    recordings = "a run directory, a JSONL of prompt_ids and output_ids, or an answer file; see docs/replay.md"
    parser.add_argument("--of", type=Path, required=True, metavar="PATH", help=recordings)


def replay(options: Namespace) -> Result:
    """Replay recorded answers: what would have been accepted of drafts. Loads no model."""
    from specbench.setup.compose import compose_run

    settings = compose_run(options.overrides, options.config_dir)
    from specbench.running.progress import Display

    with Display(stage="replaying"):
        from specbench.replay.run import build_replay_table, describe_replay, replay_run
        from specbench.running.sweep import check_single_run

        check_single_run(settings, options.overrides, "replay")
        folder, replayed, notes = replay_run(options.of, settings)
    document = {"run": folder, "methods": describe_replay(replayed), "notes": notes}
    return Result(document, [build_replay_table(replayed), *notes, f"replay: {folder}"])


def add_paper_options(parser: Parser) -> None:
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="or a folder of runs, such as a sweep's")
    parser.add_argument("--out", type=parse_folder, default=Path("reports/paper"), help="default: reports/paper")


def paper(options: Namespace) -> Result:
    """Render the survey's tables and figures, and the leaderboards, beside measured runs."""
    from specbench.running.progress import Display

    with Display(stage="drawing the page"):
        from specbench.paper.render import render_paper
        from specbench.records.run_directory import expand_paths

        page = render_paper(expand_paths(options.runs), options.out)
    return Result({"page": page}, [f"page: {page}"])


COMMANDS = (
    Command("report", report, "results/my-run", add_report_options),
    Command("compare", compare, "results/before results/after", add_compare_options, mixed=True),
    Command("replay", replay, "--of results/my-run method=[pld,sam_decoding]", add_replay_options, root="config"),
    Command("paper", paper, "results/my-run", add_paper_options),
)
