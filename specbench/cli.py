"""specbench: the one entry point. Exit status: 0 fine, 1 the answer is no, 2 unusable input."""

import argparse
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from specbench.errors import InputError

console = Console()


def run(argv: list[str]) -> int:
    """Time methods against autoregressive decoding: specbench run [overrides] [--config-dir DIR] [-m]."""
    if {"-m", "--multirun"} & set(argv):
        return _multirun(argv)
    options, overrides = _with_config_dir("run", argv)
    from specbench.compose import composed
    from specbench.progress import ProgressDisplay
    from specbench.run import execute

    config = composed(overrides, options.config_dir)
    with ProgressDisplay(console) as display:
        path = execute(config, display)
    return _report([path], Path("reports") / path.resolve().name)


def report(argv: list[str]) -> int:
    """Tables, figures and the page of finished runs: specbench report RUN… [--out DIR]."""
    parser = argparse.ArgumentParser(prog="specbench report", description=report.__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, help="default: reports/<name of the run>")
    options = parser.parse_args(argv)
    return _report(options.runs, options.out or Path("reports") / options.runs[0].resolve().name)


def cost(argv: list[str]) -> int:
    """The roofline card of a target: specbench cost [overrides] (weights=random: nothing is downloaded)."""
    options, overrides = _with_config_dir("cost", argv)
    from specbench.compose import composed
    from specbench.cost import card

    config = composed(overrides, options.config_dir)
    console.print(card(config, Path(config.out or f"reports/cost-{config.target.name}")))
    return 0


def doctor(argv: list[str]) -> int:
    """What this machine can do, and what is missing."""
    argparse.ArgumentParser(prog="specbench doctor", description=doctor.__doc__).parse_args(argv)
    from specbench.doctor import checks, render

    found = checks()
    console.print(render(found))
    return int(any(check.ok is False for check in found))


def list_(argv: list[str]) -> int:
    """What may be chosen: targets, methods, tasks, suites, engines."""
    parser = argparse.ArgumentParser(prog="specbench list", description=list_.__doc__)
    parser.add_argument("--config-dir", type=Path)
    folder = parser.parse_args(argv).config_dir
    from specbench.compose import options

    for group in ("target", "method", "task", "suite", "engine", "experiment"):
        console.print(f"[bold]{group}[/bold]: {', '.join(options(group, folder)) or '-'}", highlight=False)
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {"run": run, "report": report, "cost": cost, "doctor": doctor, "list": list_}


def _with_config_dir(command: str, argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(prog=f"specbench {command}", description=COMMANDS[command].__doc__)
    parser.add_argument("--config-dir", type=Path, help="a further folder of method/, task/, target/ YAMLs")
    options, overrides = parser.parse_known_args(argv)
    for override in overrides:
        if override.startswith("-") or "=" not in override.lstrip("~"):
            raise InputError(f"{override}: expected an override such as method=[pld,sps]")
    return options, overrides


def _report(runs: list[Path], out: Path) -> int:
    from specbench.report import render

    files = render(runs, out)
    for table in files.terminal:
        console.print(table)
    for alarm in files.alarms:
        console.print(str(alarm), markup=False)
    console.print(f"page: {files.page}", markup=False)
    return 0


def _multirun(argv: list[str]) -> int:
    """Hydra's own sweep, so that its launchers work: each job is one `specbench run`."""
    from specbench.multirun import sweep

    return sweep(argv)


def _usage() -> str:
    lines = [f"  {name:8} {command.__doc__}" for name, command in COMMANDS.items()]
    return "usage: specbench COMMAND …\n\n" + "\n".join(lines)


def main() -> None:
    warnings.filterwarnings("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    name, argv = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("", [])
    if name in ("", "-h", "--help"):
        print(_usage())
        sys.exit(0)
    try:
        if name not in COMMANDS:
            from specbench.hints import nearest

            raise InputError(f"{name}: no such command; there is {nearest(name, list(COMMANDS))}")
        sys.exit(COMMANDS[name](argv))
    except InputError as error:
        print(f"specbench: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("specbench: stopped; the same command with the same out goes on from here", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
