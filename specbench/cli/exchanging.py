"""The commands about other tools' files: export of runs and of models, import of answers."""

from argparse import Namespace
from pathlib import Path

from specbench.cli.output import Result
from specbench.cli.parser import Command, Parser, parse_folder
from specbench.errors import InputError, suggest_choices

FORMATS = ("spec_bench", "github", "bencher", "asv", "stripped")
MODELS = ("gguf", "folder")  # commands of their own


def add_export_options(parser: Parser) -> None:
    parser.add_argument("format", metavar="FORMAT", help=", ".join(FORMATS))
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--out", type=parse_folder, default=Path("exports"), metavar="FOLDER", help="default: exports")


def export(options: Namespace) -> Result:
    """Export a run for another tool, or without its texts (stripped)."""
    if options.format not in FORMATS:
        known = suggest_choices(options.format, [*FORMATS, *MODELS])
        raise InputError(f"{options.format}: no such format; expected {known}")
    if options.format == "stripped":
        from specbench.records.stripped import strip_run

        copy = strip_run(options.run, options.out)
        return Result({"run": copy}, [f"run: {copy}; specbench report {copy}"])
    from specbench.analysis.loaded_run import read_run
    from specbench.exchange import trackers
    from specbench.exchange.spec_bench import export_answers

    exporters = {"spec_bench": export_answers, **trackers.FORMATS}
    files = exporters[options.format](read_run(options.run), options.out)
    return Result({"files": files}, [str(file) for file in files])


def add_gguf_options(parser: Parser) -> None:
    parser.add_argument("--draft", action="store_true", help="the target's draft model, with the target's tokenizer")
    without = "leave out a bias on the output, which GGUF's llama lacks: speed only, texts may differ"
    parser.add_argument("--without-output-bias", action="store_true", help=without)


def export_gguf(options: Namespace) -> Result:
    """Export the target or its draft model as a GGUF file."""
    from specbench.setup.compose import compose_run

    settings = compose_run(options.overrides, options.config_dir)
    from specbench.running.progress import Display

    with Display() as display:
        from specbench.exchange import gguf_file
        from specbench.models.load import load_draft
        from specbench.running.sweep import check_single_run
        from specbench.setup import objects

        check_single_run(settings, options.overrides, "export gguf")
        path, target = gguf_file.check_path(settings.out), settings.target
        gguf_file.import_gguf()  # before anything is loaded
        objects.check_nodes(settings)
        objects.check_models(target, options.draft)
        tokenizer, _ = objects.load_target_tokenizer(target)
        model = load_draft(target.draft, target.device, target.weights) if options.draft else objects.load_target_model(target)
        display.show_status(f"writing {path}")
        written = gguf_file.export_gguf(model, tokenizer, path.stem, path, not options.without_output_bias)
    return Result({"export": written}, written.lines)


def export_folder(options: Namespace) -> Result:
    """Save the target, such as one of a GGUF file, as a folder that loads faster."""
    from specbench.setup.compose import compose_run

    settings = compose_run(options.overrides, options.config_dir)
    from specbench.running.progress import Display

    with Display():
        from specbench.exchange import folder
        from specbench.running.sweep import check_single_run
        from specbench.setup import objects

        check_single_run(settings, options.overrides, "export folder")
        out = folder.check_folder(settings.out)
        objects.check_nodes(settings)
        objects.check_models(settings.target, False)
        folder.export_folder(objects.load_target(settings.target), out)
    return Result({"folder": out}, [f"folder: {out}; specbench run target.path={out}"])


def add_import_options(parser: Parser) -> None:
    answers = "answers of a method, named like the file; files of one name (model_answer_run_*/pld.jsonl) are its repeats"
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help=answers)
    baseline = "answers of autoregressive decoding, one file per repeat"
    parser.add_argument("--baseline", nargs="+", type=Path, required=True, metavar="FILE", help=baseline)
    questions = "the questions, for tasks and categories of files without them"
    parser.add_argument("--questions", type=Path, metavar="JSONL", help=questions)
    parser.add_argument("--tokenizer", metavar="PATH", help="counts the baseline's tokens as Spec-Bench does")
    parser.add_argument("--out", type=parse_folder, required=True, metavar="FOLDER")


def import_(options: Namespace) -> Result:
    """Import answer files of Spec-Bench, REST, EAGLE or Medusa as a run, for report."""
    from specbench.exchange.spec_bench import import_answers
    from specbench.models.load import load_tokenizer
    from specbench.records.run_directory import RunDirectory
    from specbench.running.progress import say, screen
    from tasks.question import read_questions

    asked = read_questions(options.questions) if options.questions else None
    tokenizer = load_tokenizer(options.tokenizer, None, False) if options.tokenizer else None
    if options.out.exists():
        raise InputError(f"--out {options.out}: already exists; choose another folder")
    notices = list(import_answers(options.files, options.baseline, tokenizer, RunDirectory(options.out), asked))
    for notice in notices:
        say(screen, f"notice: {notice}")
    return Result({"run": options.out, "notices": notices}, [f"run: {options.out}; specbench report {options.out}"])


COMMANDS = (
    Command("export", export, "github results/my-run --out charts", add_export_options),
    Command("export gguf", export_gguf, "target.shape=100m out=exports/mini.gguf", add_gguf_options, root="config"),
    Command("export folder", export_folder, "target.path=models/mine.gguf out=models/mine", root="config"),
    Command("import", import_, "pld.jsonl --baseline baseline.jsonl --out results/imported", add_import_options),
)
