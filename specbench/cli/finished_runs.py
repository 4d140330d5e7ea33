"""The commands about finished runs: compare, plan, replay, paper, export (of a model, too), import."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from specbench.cli.parser import Parser, build_parser, console, parse_folder, parse_options, print_lines, widen_console
from specbench.errors import InputError, suggest_choices, warn

if TYPE_CHECKING:
    from specbench.compare.comparison import Comparison
    from specbench.setup.settings import RunSettings

UNDECIDED = ("fail", "pass")  # what an undecided comparison counts as


def compare(argv: list[str]) -> int:
    """Check that a run gives the texts and the speed of a reference (exit status 1 if not)."""
    if "--against" in argv or any(word.startswith("--against=") for word in argv):
        return _compare_against(argv)
    parser = Parser(prog="specbench compare", description=compare.__doc__, epilog="--against GIT-REF [KEY=VALUE ...] runs both.")
    parser.add_argument("reference", type=Path, metavar="REFERENCE", help="a run, or a folder of runs: the latest ten count")
    parser.add_argument("run", type=Path, metavar="RUN")
    differing = "a setting that may differ, such as threads"
    parser.add_argument("--factor", action="append", default=[], metavar="NAME", help=differing)
    added = "copy a run that passed into the folder REFERENCE, also the first one"
    parser.add_argument("--add", action="store_true", help=added)
    _add_outputs(parser)
    options = parser.parse_args(argv)
    _check_outputs(options)
    from specbench.compare.comparison import accept_first_reference, compare_runs

    if options.add:
        _check_folder(options.reference, options.run)
    if options.add and not any(options.reference.glob("*/config.yaml")):
        result = accept_first_reference(options.run)
    else:
        result = compare_runs(options.reference, options.run, options.factor)
    status = _print_result(result, options)
    if options.add:
        _add_run(result, options)
    return status


def _add_run(result: "Comparison", options: argparse.Namespace) -> None:
    """Copy a run that passed to the references. An undecided one may be slower, and the next one slower than that."""
    from specbench.records.run_directory import RunDirectory

    if result.verdict == "pass":
        RunDirectory(options.run).copy_to(options.reference / options.run.resolve().name)
    else:
        print_lines(f"not added to {options.reference}: only a run that passed becomes a reference")


def _compare_against(argv: list[str]) -> int:
    parser = build_parser("compare", "Compare this checkout with another one, in turns and in one run.")
    parser.add_argument("--against", required=True, metavar="GIT-REF", help="a commit, branch or tag of this repository")
    _add_outputs(parser)
    options = parse_options(parser, argv)
    _check_outputs(options)
    from specbench.compare.against import run_both
    from specbench.compare.comparison import compare_checkouts

    return _print_result(compare_checkouts(run_both(options.against, options.overrides, options.config_dir, console)), options)


def _add_outputs(parser: Parser) -> None:
    for name, what in (("json", "all figures"), ("junit", "one test per ratio"), ("markdown", "for a job's summary")):
        parser.add_argument(f"--{name}", type=Path, metavar="FILE", help=what)
    parser.add_argument("--undecided", default="pass", metavar="fail|pass", help="exit status of an undecided comparison: 1 or 0")


def _check_outputs(options: argparse.Namespace) -> None:
    """Raise InputError, before anything is compared, for a file that cannot be one and for an unknown --undecided."""
    if options.undecided not in UNDECIDED:
        raise InputError(f"--undecided {options.undecided}: expected {suggest_choices(options.undecided, UNDECIDED)}")
    for name in ("json", "junit", "markdown"):
        path: Path | None = getattr(options, name)
        if path and path.exists() and not path.is_file():
            raise InputError(f"--{name} {path}: expected a file, but this is a folder or something else")


def _print_result(result: "Comparison", options: argparse.Namespace) -> int:
    """Print a comparison, write the files that the options name, and return the exit status."""
    from specbench.compare import render
    from specbench.records.files import write_atomic

    widen_console()
    print_lines(*filter(None, [result.power]), render.format_title(result))
    if result.reference:
        console.print(render.build_comparison_table(result))
    print_lines(*render.format_notes(result))
    if options.json:
        render.write_json(result, options.json)
    if options.junit:
        render.write_junit(result, options.junit)
    if options.markdown:
        write_atomic(options.markdown, render.format_comparison(result))
    return int(result.verdict == "fail" or (result.verdict == "undecided" and options.undecided == "fail"))


def _check_folder(folder: Path, run: Path) -> None:
    """Raise InputError for a run that cannot be added to a folder of references."""
    from specbench.analysis.loaded_run import read_run

    if missing := sum(read_run(run).missing.values()):
        raise InputError(f"--add: {run} is not finished: {missing} turns are missing; run the same command again to resume")
    name = run.resolve().name
    if (folder / name).exists() or (folder / "config.yaml").exists():
        raise InputError(f"--add: {folder} is a run itself, or already holds one called {name}")


def plan(argv: list[str]) -> int:
    """Estimate a run's memory and minutes; from a pilot run also how many questions it takes to detect a difference."""
    parser = build_parser("plan", plan.__doc__)
    parser.add_argument("--pilot", type=Path, metavar="RUN", help="two questions per task and two repeats or more")
    parser.add_argument("--effect", type=float, default=0.05, help="relative change of a speedup; default: 0.05")
    parser.add_argument("--power", type=float, default=0.95, help="probability of detecting it; default: 0.95")
    options = parse_options(parser, argv)
    if not 0 < options.effect < 1 or not 0 < options.power < 1:
        raise InputError(f"--effect {options.effect} --power {options.power}: expected shares, above 0 and below 1")
    from specbench.setup.compose import compose_run

    settings = compose_run(options.overrides, options.config_dir)
    from specbench.analysis.loaded_run import read_run
    from specbench.compare.gate import FAILS_BELOW
    from specbench.compare.plan import build_methods_table, build_run_table, check_pilot, plan_methods, plan_run
    from specbench.running.execute import outline_run
    from specbench.running.sweep import check_single_run

    if options.pilot is None:
        return _plan_needs(settings, options.overrides)
    if options.effect <= 1 - FAILS_BELOW:
        raise InputError(f"--effect {options.effect}: expected more than {1 - FAILS_BELOW:g}; compare ignores smaller changes")
    check_single_run(settings, options.overrides, "plan")
    pilot = read_run(options.pilot)
    sizes = {"batch": settings.batch, "concurrency": settings.concurrency}
    check_pilot(pilot, {key: getattr(settings.target, key) for key in ("name", "shape", "dtype")}, sizes)
    widen_console()
    questions, methods, repeats = outline_run(settings)
    plans = plan_methods(pilot, methods, options.effect, options.power)
    console.print(build_methods_table(plans, options.effect, options.power, settings.batch))
    console.print(build_run_table(plan_run(pilot, questions, methods, repeats)))
    return 0


def _plan_needs(settings: "RunSettings", overrides: list[str]) -> int:
    """Print what the run needs, and return the exit status."""
    from specbench.running.execute import plan_needs
    from specbench.running.sweep import check_single_run

    check_single_run(settings, overrides, "plan")
    announced = plan_needs(settings)
    if announced is None:
        raise InputError(f"target={settings.target.name}: its architecture cannot be estimated; a run with limit=1 measures it")
    widen_console()
    console.print(announced.build_table())
    announced.check()
    return 0


def replay(argv: list[str]) -> int:
    """Replay drafters that need only tokens on recorded answers: what would be accepted. Loads no model."""
    parser = build_parser("replay", replay.__doc__)
    recordings = "a run directory, a JSONL of prompt_ids and output_ids, or an answer file; see docs/replay.md"
    parser.add_argument("--of", type=Path, required=True, metavar="PATH", help=recordings)
    options = parse_options(parser, argv)
    from specbench.setup.compose import compose_run

    settings = compose_run(options.overrides, options.config_dir)
    from specbench.replay.run import build_replay_table, replay_run
    from specbench.running.sweep import check_single_run

    check_single_run(settings, options.overrides, "replay")
    folder, replayed, notes = replay_run(options.of, settings)
    widen_console()
    console.print(build_replay_table(replayed))
    print_lines(*notes, f"replay: {folder}")
    return 0


def paper(argv: list[str]) -> int:
    """Render the survey's tables and figures and the leaderboards, with the measured runs that match them."""
    parser = Parser(prog="specbench paper", description=paper.__doc__)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="or a folder of runs, such as a sweep's")
    parser.add_argument("--out", type=parse_folder, default=Path("reports/paper"), help="default: reports/paper")
    options = parser.parse_args(argv)
    from specbench.paper.render import render_paper
    from specbench.records.run_directory import expand_paths

    print_lines(f"page: {render_paper(expand_paths(options.runs), options.out)}")
    return 0


def export(argv: list[str]) -> int:
    """Export a run for another tool: spec_bench, github, bencher, asv; without its texts: stripped; or a model: gguf, folder."""
    if argv[:1] == ["gguf"]:
        return _export_model(argv[1:])
    if argv[:1] == ["folder"]:
        return _export_folder(argv[1:])
    from specbench.analysis.loaded_run import read_run
    from specbench.exchange.spec_bench import export_answers
    from specbench.exchange.trackers import FORMATS
    from specbench.records.stripped import strip_run

    formats = {"spec_bench": export_answers, **FORMATS}
    epilog = "A model: specbench export gguf --help, specbench export folder --help"
    parser = Parser(prog="specbench export", description=export.__doc__, epilog=epilog)
    parser.add_argument("format", metavar="FORMAT", help=", ".join([*formats, "stripped"]))
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--out", type=parse_folder, default=Path("exports"), metavar="FOLDER", help="default: exports")
    options = parser.parse_args(argv)
    if options.format == "stripped":
        copy = strip_run(options.run, options.out)
        print_lines(f"run: {copy}; specbench report {copy}")
        return 0
    if options.format not in formats:
        known = [*formats, "stripped", "gguf", "folder"]
        raise InputError(f"{options.format}: no such format; expected {suggest_choices(options.format, known)}")
    print_lines(*formats[options.format](read_run(options.run), options.out))
    return 0


def _export_model(argv: list[str]) -> int:
    """Export the target, at its shape and in its dtype, or its draft model as a GGUF file."""
    parser = build_parser("export gguf", _export_model.__doc__)
    parser.add_argument("--draft", action="store_true", help="the target's draft model, with the target's tokenizer")
    without = "leave out a bias on the output, which GGUF's llama lacks: speed only, texts may differ"
    parser.add_argument("--without-output-bias", action="store_true", help=without)
    options = parse_options(parser, argv)
    from specbench.setup.compose import compose_run

    settings = compose_run(options.overrides, options.config_dir)
    from specbench.exchange.gguf_file import check_path, export_gguf, import_gguf
    from specbench.models.load import load_draft
    from specbench.running.sweep import check_single_run
    from specbench.setup import objects

    check_single_run(settings, options.overrides, "export gguf")
    path, target = check_path(settings.out), settings.target
    import_gguf()  # before anything is loaded
    objects.check_nodes(settings)
    objects.check_models(target, options.draft)
    tokenizer, _ = objects.load_target_tokenizer(target)
    model = load_draft(target.draft, target.device, target.weights) if options.draft else objects.load_target_model(target)
    print_lines(*export_gguf(model, tokenizer, path.stem, path, not options.without_output_bias).lines)
    return 0


def _export_folder(argv: list[str]) -> int:
    """Save the target as a folder that transformers reads, such as a GGUF file's, in its dtype: it then loads faster."""
    options = parse_options(build_parser("export folder", _export_folder.__doc__), argv)
    from specbench.setup.compose import compose_run

    settings = compose_run(options.overrides, options.config_dir)
    from specbench.exchange.folder import check_folder, export_folder
    from specbench.running.sweep import check_single_run
    from specbench.setup import objects

    check_single_run(settings, options.overrides, "export folder")
    folder = check_folder(settings.out)
    objects.check_nodes(settings)
    objects.check_models(settings.target, False)
    export_folder(objects.load_target(settings.target), folder)
    print_lines(f"folder: {folder}; specbench run target.path={folder}")
    return 0


def import_(argv: list[str]) -> int:
    """Import answer files of Spec-Bench, REST, EAGLE or Medusa as a run, for report."""
    parser = Parser(prog="specbench import", description=import_.__doc__)
    answers = "answers of a method, named like the file; files of one name (model_answer_run_*/pld.jsonl) are its repeats"
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help=answers)
    baseline = "answers of autoregressive decoding, one file per repeat"
    parser.add_argument("--baseline", nargs="+", type=Path, required=True, metavar="FILE", help=baseline)
    questions = "the questions, for tasks and categories of files without them"
    parser.add_argument("--questions", type=Path, metavar="JSONL", help=questions)
    parser.add_argument("--tokenizer", metavar="PATH", help="counts the baseline's tokens as Spec-Bench does")
    parser.add_argument("--out", type=parse_folder, required=True, metavar="FOLDER")
    options = parser.parse_args(argv)
    from specbench.exchange.spec_bench import import_answers
    from specbench.models.load import load_tokenizer
    from specbench.records.run_directory import RunDirectory
    from tasks.question import read_questions

    asked = read_questions(options.questions) if options.questions else None
    tokenizer = load_tokenizer(options.tokenizer, None, False) if options.tokenizer else None
    if options.out.exists():
        raise InputError(f"--out {options.out}: already exists; choose another folder")
    for notice in import_answers(options.files, options.baseline, tokenizer, RunDirectory(options.out), asked):
        warn(f"notice: {notice}")
    print_lines(f"run: {options.out}; specbench report {options.out}")
    return 0
