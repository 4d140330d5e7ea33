"""The commands that measure, or say what a measurement takes: run, plan, cost, certify, doctor."""

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from specbench.cli import finished_runs
from specbench.cli.output import Result
from specbench.cli.parser import Command, Parser
from specbench.errors import InputError, abbreviate
from specbench.report.folder import choose_folder

if TYPE_CHECKING:
    from specbench.running.announce import Announcement
    from specbench.setup.settings import RunSettings


def compose(options: Namespace) -> "RunSettings":
    """Return the settings of a command about one run, whose log begins here."""
    from specbench.running.log import start_log
    from specbench.setup.compose import compose_run

    settings = compose_run(options.overrides, options.config_dir)  # before torch is imported, which takes seconds
    start_log(settings.log)
    return settings


def add_run_options(parser: Parser) -> None:
    parser.add_argument("-m", "--multirun", action="store_true", help="one run for each comma-separated value")


def run(options: Namespace) -> Result:
    """Time methods against autoregressive decoding."""
    if options.multirun:
        return _sweep(options)
    settings = compose(options)
    from specbench.running.sweep import expand_sweep

    if expand_sweep(settings.sweep, options.overrides):
        return _sweep(options)
    from specbench.running.start import start_run

    path = start_run(settings)
    return finished_runs.report_runs([path], choose_folder(path))


def _sweep(options: Namespace) -> Result:
    from specbench.running.sweep import sweep

    swept = sweep(options.overrides, options.config_dir)
    problem = f"out={swept.folder}: {abbreviate(swept.failed)}" if swept.failed else ""
    if not swept.runs:
        raise InputError(problem or f"out={swept.folder}: no run was made")
    return finished_runs.report_runs(swept.runs, choose_folder(swept.folder), problem=problem)


def add_plan_options(parser: Parser) -> None:
    parser.add_argument("--pilot", type=Path, metavar="RUN", help="two questions per task and two repeats or more")
    parser.add_argument("--effect", type=float, default=0.05, help="relative change of a speedup; default: 0.05")
    parser.add_argument("--power", type=float, default=0.95, help="probability of detecting it; default: 0.95")


def plan(options: Namespace) -> Result:
    """Estimate a run's memory and minutes; from a pilot run, how many questions it needs."""
    if not 0 < options.effect < 1 or not 0 < options.power < 1:
        raise InputError(f"--effect {options.effect} --power {options.power}: expected shares, above 0 and below 1")
    settings = compose(options)
    from specbench.compare.gate import FAILS_BELOW
    from specbench.running.progress import Display
    from specbench.running.sweep import check_single_run

    if options.pilot and options.effect <= 1 - FAILS_BELOW:
        raise InputError(f"--effect {options.effect}: expected more than {1 - FAILS_BELOW:g}; compare ignores smaller changes")
    check_single_run(settings, options.overrides, "plan")
    with Display(stage="estimating memory and time"):
        return _plan_from_pilot(settings, options) if options.pilot else _plan_needs(settings)


def _plan_from_pilot(settings: "RunSettings", options: Namespace) -> Result:
    from specbench.analysis.loaded_run import read_run
    from specbench.compare.plan import build_methods_table, build_run_table, check_pilot, plan_methods, plan_run
    from specbench.running.execute import outline_run

    pilot = read_run(options.pilot)
    sizes = {"batch": settings.batch, "concurrency": settings.concurrency}
    check_pilot(pilot, {key: getattr(settings.target, key) for key in ("name", "shape", "dtype")}, sizes)
    questions, methods, repeats = outline_run(settings)
    plans = plan_methods(pilot, methods, options.effect, options.power)
    whole = plan_run(pilot, questions, methods, repeats)
    document = {"effect": options.effect, "power": options.power, "methods": plans, "run": whole}
    totals = {"minutes": whole.total, "lacking": whole.lacking}
    tables = [build_methods_table(plans, options.effect, options.power, settings.batch), build_run_table(whole)]
    return Result(document | totals, tables)


def _plan_needs(settings: "RunSettings") -> Result:
    """Return what the run needs."""
    from specbench.running.execute import plan_needs

    announced = plan_needs(settings)
    if announced is None:
        raise InputError(f"target={settings.target.name}: its architecture cannot be estimated; a run with limit=1 measures it")
    problem = _find_problem(announced)
    need, minutes = announced.need, announced.minutes
    bytes_ = {"target": need.target, "methods": need.methods, "at_once": need.total, "free": announced.free}
    times = {"by_method": minutes.by_method, "total": minutes.total}
    document = {"device": need.device, "dtype": need.dtype, "bytes": bytes_, "minutes": times, "fits": not problem}
    return Result(document, [announced.build_table()], problem=problem)


def _find_problem(announced: "Announcement") -> str:
    try:
        announced.check()
    except InputError as error:
        return str(error)
    return ""


def cost(options: Namespace) -> Result:
    """Write the roofline card of a target: what a forward over many tokens costs."""
    settings = compose(options)
    from specbench.running.progress import Display

    with Display() as display:
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
        devices = list_timed_devices(target.device, target.device_map)
        with lock_devices(devices, lambda message: display.announce([message])):
            card = write_card(settings, Path(settings.out or f"reports/{name}").expanduser(), display.show_status)
    return Result({"title": card.title, "folder": card.folder, "rows": card.rows}, [card.table])


def certify(options: Namespace) -> Result:
    """Certify that methods write the target's own text (exit status 1 if one does not)."""
    from specbench.setup.compose import compose_certify

    settings = compose_certify(options.overrides, options.config_dir)
    from specbench.setup.questions import check_tasks

    check_tasks(settings)  # before torch is imported
    from specbench.running.progress import TrainingDisplay

    with TrainingDisplay() as display:
        from specbench.certify import certify as certification
        from specbench.certify.tables import build_certificate_table

        certificate, out = certification.certify(settings, display.update)
    lines = [f"certificate {'passed' if certificate.passed else 'failed'}: {out / 'certificate.json'}"]
    if out.resolve().parent.name != "certificates":
        lines.append("reports look for certificates in the folder `certificates` next to the run")
    document = {"passed": certificate.passed, "file": out / "certificate.json", "certificate": certificate}
    return Result(document, [build_certificate_table(certificate), *lines], status=0 if certificate.passed else 1)


def doctor(options: Namespace) -> Result:
    """Check what this machine can do, and what is missing."""
    from specbench.running.progress import Display

    with Display(stage="checking this machine") as display:
        from specbench.diagnose.doctor import build_checks_table, run_checks

        display.show_status("checking this machine", timed=True)
        checks = run_checks()
    fine = all(check.ok is not False for check in checks)
    return Result({"ok": fine, "checks": checks}, [build_checks_table(checks)], status=int(not fine))


COMMANDS = (
    Command("run", run, "method=[pld,sps] task=[qa] limit=4 out=results/my-run", add_run_options, root="config"),
    Command("plan", plan, "method=[pld,sps] limit=10", add_plan_options, root="config"),
    Command("cost", cost, "target.shape=100m", root="config"),
    Command("certify", certify, "method=[pld,sps] limit=1", root="certify"),
    Command("doctor", doctor, ""),
)
