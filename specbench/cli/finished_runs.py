"""The commands that look at finished runs: compare, plan, replay, paper, export, import."""

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from specbench.cli.parser import Parser, build_parser, console, parse_options, widen_console
from specbench.errors import InputError, suggest_choices

if TYPE_CHECKING:
    from specbench.compare.comparison import Comparison


def compare(argv: list[str]) -> int:
    """Whether a run does what a reference did, as fast (exit status 1 where it does not)."""
    if "--against" in argv or any(word.startswith("--against=") for word in argv):
        return _compare_against(argv)
    parser = Parser(prog="specbench compare", description=compare.__doc__, epilog="--against GIT-REF [KEY=VALUE ...] runs both.")
    parser.add_argument("reference", type=Path, metavar="REFERENCE", help="a run, or a folder of runs, whose latest ten count")
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument(
        "--factor", action="append", default=[], metavar="NAME", help="a setting that may differ, such as threads"
    )
    parser.add_argument(
        "--add", action="store_true", help="copy a run that has not failed into the folder REFERENCE, also as its first"
    )
    _add_outputs(parser)
    options = parser.parse_args(argv)
    from specbench.compare.comparison import accept_first_reference, compare_runs

    if options.add:
        _check_folder(options.reference, options.run)
    if options.add and not any(options.reference.glob("*/config.yaml")):
        found = accept_first_reference(options.run)
    else:
        found = compare_runs(options.reference, options.run, options.factor)
    status = _print_result(found, options)
    if options.add and not found.failed:
        shutil.copytree(options.run, options.reference / options.run.resolve().name)
    return status


def _compare_against(argv: list[str]) -> int:
    parser = build_parser("compare", "This checkout and another one in turns, in one run.")
    parser.add_argument("--against", required=True, metavar="GIT-REF", help="a commit, branch or tag of this repository")
    _add_outputs(parser)
    options = parse_options(parser, argv)
    from specbench.compare.against import run_both
    from specbench.compare.comparison import compare_checkouts

    return _print_result(compare_checkouts(run_both(options.against, options.overrides, options.config_dir, console)), options)


def _add_outputs(parser: Parser) -> None:
    for name, what in (("json", "all figures"), ("junit", "a test a ratio, JUnit"), ("markdown", "for the summary of a job")):
        parser.add_argument(f"--{name}", type=Path, metavar="FILE", help=what)


def _print_result(found: "Comparison", options: argparse.Namespace) -> int:
    """Prints and writes what is asked for; the exit status."""
    from specbench.compare.comparison import (
        build_comparison_table,
        format_comparison,
        format_notes,
        format_title,
        write_json,
        write_junit,
    )
    from specbench.records.files import write_atomic

    widen_console()
    console.print(build_comparison_table(found) if found.reference else format_title(found))
    for line in format_notes(found):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if options.json:
        write_json(found, options.json)
    if options.junit:
        write_junit(found, options.junit)
    if options.markdown:
        write_atomic(options.markdown, format_comparison(found))
    return int(found.failed)


def _check_folder(folder: Path, run: Path) -> None:
    """Raises InputError where a run cannot be added."""
    from specbench.analysis.loaded_run import read_run

    missing, name = sum(read_run(run).missing.values()), run.resolve().name
    if missing:
        raise InputError(f"--add: {run} is not finished: {missing} turns are still to be run; the same command goes on")
    if (folder / name).exists() or (folder / "config.yaml").exists():
        raise InputError(f"--add: {folder} is a run itself, or holds one called {name} already")


def plan(argv: list[str]) -> int:
    """How many questions a wanted difference takes, how many minutes and how much memory, from a pilot run."""
    parser = build_parser("plan", plan.__doc__)
    parser.add_argument("--pilot", type=Path, required=True, metavar="RUN", help="two questions a task and two repeats at least")
    parser.add_argument("--effect", type=float, default=0.05, help="of a speedup, as a share; default: 0.05")
    parser.add_argument("--power", type=float, default=0.95, help="chance to find it; default: 0.95")
    options = parse_options(parser, argv)
    if not 0 < options.effect < 1 or not 0 < options.power < 1:
        raise InputError(f"--effect {options.effect} --power {options.power}: expected shares, above 0 and below 1")
    from specbench.setup.compose import compose_run

    settings = compose_run(options.overrides, options.config_dir)
    from specbench.analysis.loaded_run import read_run
    from specbench.compare.gate import FAILS_BELOW
    from specbench.compare.plan import build_methods_table, build_run_table, plan_methods, plan_run
    from specbench.running.execute import outline_run
    from specbench.running.sweep import check_single_run

    if options.effect <= 1 - FAILS_BELOW:
        raise InputError(f"--effect {options.effect}: expected more than {1 - FAILS_BELOW:g}; compare lets less pass")
    check_single_run(settings, options.overrides, "plan")
    pilot = read_run(options.pilot)
    for key in ("name", "shape", "dtype"):
        was, wanted = (pilot.config.get("target") or {}).get(key), getattr(settings.target, key)
        if was != wanted:
            raise InputError(
                f"--pilot {options.pilot} ran target.{key}={was}, planned is {wanted}: its times say nothing of that"
            )
    widen_console()
    questions, methods, repeats = outline_run(settings)
    console.print(build_methods_table(plan_methods(pilot, methods, options.effect, options.power), options.effect, options.power))
    console.print(build_run_table(plan_run(pilot, questions, methods, repeats)))
    return 0


def replay(argv: list[str]) -> int:
    """What drafters that read tokens alone would have had accepted on recorded answers; no model is loaded."""
    parser = build_parser("replay", replay.__doc__)
    recorded = "a run directory, a JSONL of prompt_ids and output_ids, or an answer file of Spec-Bench; see docs/replay.md"
    parser.add_argument("--of", type=Path, required=True, metavar="PATH", help=recorded)
    options = parse_options(parser, argv)
    from specbench.setup.compose import compose_run

    settings = compose_run(options.overrides, options.config_dir)
    from specbench.replay.run import build_replay_table, replay_run
    from specbench.running.sweep import check_single_run

    check_single_run(settings, options.overrides, "replay")
    folder, found, note = replay_run(options.of, settings)
    widen_console()
    console.print(build_replay_table(found))
    if note:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    console.print(f"replay: {folder}", markup=False, soft_wrap=True)
    return 0


def paper(argv: list[str]) -> int:
    """The survey's tables and figures, the leaderboards and their drift, with measured runs beside what they match."""
    parser = Parser(prog="specbench paper", description=paper.__doc__)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="or a folder of runs, such as a sweep's")
    parser.add_argument("--out", type=Path, default=Path("reports/paper"), help="default: reports/paper")
    options = parser.parse_args(argv)
    from specbench.paper.render import render_paper
    from specbench.records.run_directory import expand_paths

    console.print(f"page: {render_paper(expand_paths(options.runs), options.out)}", markup=False, soft_wrap=True)
    return 0


def export(argv: list[str]) -> int:
    """A run in another tool's format: spec_bench, github, bencher, asv."""
    from specbench.analysis.loaded_run import read_run
    from specbench.exchange.spec_bench import export_answers as spec_bench
    from specbench.exchange.trackers import FORMATS

    formats = {"spec_bench": spec_bench, **FORMATS}
    parser = Parser(prog="specbench export", description=export.__doc__)
    parser.add_argument("format", metavar="FORMAT", help=", ".join(formats))
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, default=Path("exports"), metavar="FOLDER", help="default: exports")
    options = parser.parse_args(argv)
    if options.format not in formats:
        raise InputError(f"{options.format}: no such format; expected {suggest_choices(options.format, list(formats))}")
    for path in formats[options.format](read_run(options.run), options.out):
        console.print(path, markup=False, highlight=False, soft_wrap=True)
    return 0


def import_(argv: list[str]) -> int:
    """Spec-Bench's answer files as a run, for report and replay."""
    parser = Parser(prog="specbench import", description=import_.__doc__)
    several = "several of one name, such as model_answer_run_*/pld.jsonl, are its repeats"
    parser.add_argument(
        "files", nargs="*", type=Path, metavar="FILE", help=f"answers of a method, called after the file; {several}"
    )
    parser.add_argument(
        "--baseline", nargs="+", type=Path, required=True, metavar="FILE", help="answers of autoregressive decoding, as many"
    )
    parser.add_argument("--tokenizer", metavar="PATH", help="to count the baseline's tokens as Spec-Bench does")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    options = parser.parse_args(argv)
    from specbench.exchange.spec_bench import import_answers as imported
    from specbench.models.load import load_tokenizer
    from specbench.records.run_directory import RunDirectory

    tokenizer = load_tokenizer(options.tokenizer, None, False) if options.tokenizer else None
    if options.out.exists():
        raise InputError(f"--out {options.out}: is there already; choose another folder")
    imported(options.files, options.baseline, tokenizer, RunDirectory(options.out))
    console.print(f"run: {options.out}; specbench report {options.out}", markup=False, soft_wrap=True)
    return 0
