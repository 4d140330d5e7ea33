"""The entry point of specbench. Exit status: 0 success, 1 a check failed, 2 bad input, 70 our mistake, 130 stopped."""

import argparse
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from specbench.cli import finished_runs as commands
from specbench.cli.last_line import explain, flush_output, open_closed_streams
from specbench.cli.parser import (
    Parser,
    accept_any_text,
    build_parser,
    console,
    parse_folder,
    parse_options,
    print_lines,
    widen_console,
)
from specbench.errors import InputError, abbreviate, suggest_choices, warn
from specbench.report.folder import choose_folder


def run(argv: list[str]) -> int:
    """Time methods against autoregressive decoding."""
    parser = build_parser("run", run.__doc__)
    parser.add_argument("-m", "--multirun", action="store_true", help="one run for each comma-separated value")
    options = parse_options(parser, argv)
    if options.multirun:
        return _sweep(options)
    from specbench.setup.compose import compose_run

    settings = compose_run(options.overrides, options.config_dir)  # before torch is imported, which takes seconds
    from specbench.running.sweep import expand_sweep

    if expand_sweep(settings.sweep, options.overrides):
        return _sweep(options)
    from specbench.running.start import start_run

    path = start_run(settings, console)
    return _report([path], choose_folder(path))


def _sweep(options: argparse.Namespace) -> int:
    from specbench.running.sweep import sweep

    result = sweep(options.overrides, options.config_dir)
    if result.runs:
        _report(result.runs, choose_folder(result.folder))
    if result.failed:
        raise InputError(f"out={result.folder}: {abbreviate(result.failed)}")
    return 0


def report(argv: list[str]) -> int:
    """Print the tables of finished runs, and render their page with figures."""
    parser = Parser(prog="specbench report", description=report.__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="or a folder of runs, such as a sweep's")
    parser.add_argument("--out", type=parse_folder, help="default: reports/<name of the first RUN>")
    options = parser.parse_args(argv)
    from specbench.records.run_directory import expand_paths

    return _report(expand_paths(options.runs), options.out or choose_folder(options.runs[0]), strata=True)


def cost(argv: list[str]) -> int:
    """Write the roofline card of a target (with weights=random nothing is downloaded)."""
    options = parse_options(build_parser("cost", cost.__doc__), argv)
    from specbench.setup.compose import compose_run

    settings = compose_run(options.overrides, options.config_dir)
    from specbench.diagnose.roofline import write_card
    from specbench.machine.devices import list_timed_devices
    from specbench.machine.locks import lock_devices
    from specbench.records.names import make_file_name
    from specbench.running.sweep import check_single_run
    from specbench.setup.objects import check_models, check_nodes

    check_nodes(settings)
    check_single_run(settings, options.overrides, "cost")
    target = settings.target
    check_models(target, draft=False)
    name = make_file_name("-".join(filter(None, ("cost", target.name, target.shape))))
    with lock_devices(list_timed_devices(target.device, target.device_map), warn):
        console.print(write_card(settings, Path(settings.out or f"reports/{name}").expanduser()))
    return 0


def train(argv: list[str]) -> int:
    """Train a drafter's own weights for a target."""
    options = parse_options(build_parser("train", train.__doc__, "train"), argv)
    from specbench.setup.compose import compose_train

    settings = compose_train(options.overrides, options.config_dir)
    from accelerate import PartialState

    from specbench.running.progress import TrainingDisplay
    from specbench.training import train as training

    with TrainingDisplay(console) as display:
        out = training.train(settings, display.update)
    if PartialState().is_main_process:
        print_lines(f"checkpoint: {out}; its card: {out}/README.md")
    return 0


def certify(argv: list[str]) -> int:
    """Certify that methods produce the target's own text (exit status 1 if one does not)."""
    options = parse_options(build_parser("certify", certify.__doc__, "certify"), argv)
    from specbench.setup.compose import compose_certify

    settings = compose_certify(options.overrides, options.config_dir)
    from specbench.setup.questions import check_tasks

    check_tasks(settings)  # before torch is imported
    from specbench.certify import certify as certification
    from specbench.certify.tables import build_certificate_table
    from specbench.running.progress import TrainingDisplay

    with TrainingDisplay(console) as display:
        certificate, out = certification.certify(settings, display.update)
    widen_console()
    console.print(build_certificate_table(certificate))
    print_lines(f"certificate {'passed' if certificate.passed else 'failed'}: {out / 'certificate.json'}")
    if out.resolve().parent.name != "certificates":
        print_lines("reports look for certificates in the folder `certificates` next to the run")
    return 0 if certificate.passed else 1


def datastore(argv: list[str]) -> int:
    """Build a store of texts that REST drafts from (specbench datastore build)."""
    if argv[:1] in ([], ["-h"], ["--help"]):
        argv = ["build", "--help"]
    if argv[0] != "build":
        raise InputError(f"datastore {argv[0]}: no such command; expected build")
    options = parse_options(build_parser("datastore build", datastore.__doc__, "datastore"), argv[1:])
    from specbench.setup.compose import compose_datastore

    settings = compose_datastore(options.overrides, options.config_dir)
    from specbench.datastore.make import build_from_config
    from specbench.running.progress import TrainingDisplay

    with TrainingDisplay(console) as display:
        out = build_from_config(settings, display.update)
    print_lines(f"datastore: {out}; specbench run method=[rest] target.datastore={out}")
    return 0


def target(argv: list[str]) -> int:
    """Print a YAML for a model of your own (specbench target new PATH)."""
    if argv[:1] in ([], ["-h"], ["--help"]):
        argv = ["new", "--help"]
    if argv[0] != "new":
        raise InputError(f"target {argv[0]}: no such command; expected new")
    parser = Parser(prog="specbench target new", description=target.__doc__)
    parser.add_argument("path", help="a folder, a GGUF file or a hub id")
    path = parser.parse_args(argv[1:]).path
    from specbench.models.load import check_model
    from specbench.models.place import check_holds_model
    from specbench.setup.local import build_yaml

    check_model(path)
    check_holds_model(path)
    print_lines(build_yaml(path))
    return 0


def doctor(argv: list[str]) -> int:
    """Check what this machine can do, and what is missing."""
    Parser(prog="specbench doctor", description=doctor.__doc__).parse_args(argv)
    from specbench.diagnose.doctor import build_checks_table, run_checks

    checks = run_checks()
    console.print(build_checks_table(checks))
    return int(any(check.ok is False for check in checks))


def list_(argv: list[str]) -> int:
    """List the choices: targets, methods, tasks, suites, engines, experiments."""
    parser = Parser(prog="specbench list", description=list_.__doc__)
    parser.add_argument("--config-dir", type=Path, metavar="DIR")
    folder = parser.parse_args(argv).config_dir
    from specbench.setup.compose import GROUPS, check_folder, check_syntax, list_options

    check_folder(folder)
    if folder is not None:
        check_syntax(folder)
    for group in GROUPS:
        console.print(f"{group}:", style="bold", end=" ")
        print_lines(", ".join(list_options(group, folder)) or "-")
    return 0


FINISHED = (commands.compare, commands.plan, commands.replay, commands.paper, commands.export, commands.import_)
COMMANDS: dict[str, Callable[[list[str]], int]] = {
    command.__name__.rstrip("_"): command
    for command in (run, report, *FINISHED, certify, train, datastore, target, cost, doctor, list_)
}


def _report(runs: list[Path], out: Path, strata: bool = False) -> int:
    from specbench.report.render import render_report

    files = render_report(runs, out)
    widen_console()
    for table in [*files.terminal, *(files.build_strata_tables(console.width) if strata else [])]:
        console.print(table)
    print_lines(*files.alarms, f"page: {files.page}")
    return 0


def _call_command(argv: list[str]) -> int:
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help"):
        lines = [f"  {name:9} {command.__doc__}" for name, command in COMMANDS.items()]
        print_lines("usage: specbench COMMAND …\n", *lines)
        return 0
    if name not in COMMANDS:
        raise InputError(f"{name}: no such command; expected {suggest_choices(name, list(COMMANDS))}")
    return COMMANDS[name](argv[1:])


def main() -> None:
    """Run the command of sys.argv and exit with its status."""
    open_closed_streams()
    accept_any_text()
    warnings.filterwarnings("ignore")
    try:
        status = _call_command(sys.argv[1:])
        flush_output()
    except (Exception, KeyboardInterrupt) as error:
        status = explain(error)
    sys.exit(status)
