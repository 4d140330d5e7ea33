"""The entry point of specbench. Exit status: 0 success, 1 a check failed, 2 bad input, 70 our mistake, 130 stopped."""

import sys
import warnings
from argparse import Namespace
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout

from specbench.cli import completion, exchanging, finished_runs, leaderboard, making, measuring
from specbench.cli.last_line import explain, flush_output, open_closed_streams
from specbench.cli.output import STDOUT, Result, accept_any_text, print_lines, publish
from specbench.cli.parser import Command, parse_options
from specbench.cli.version import show_version
from specbench.errors import InputError, suggest_choices
from specbench.running.log import stop_logs

FAMILIES = {
    "Measure": measuring.COMMANDS,
    "Look at finished runs": finished_runs.COMMANDS,
    "Share results": leaderboard.COMMANDS,
    "Make what a run needs": making.COMMANDS,
    "Exchange files with other tools": exchanging.COMMANDS,
    "The shell": completion.COMMANDS,
}
COMMANDS = {command.name: command for commands in FAMILIES.values() for command in commands}
VERSION = Command("--version", show_version, "")
HELP = ("-h", "--help")


def find_command(argv: Sequence[str]) -> tuple[Command, Sequence[str]]:
    """Return the command that the first word or two name, and the words after it. Raises InputError for another one."""
    first, second = [*argv, "", ""][:2]
    if f"{first} {second}" in COMMANDS:
        return COMMANDS[f"{first} {second}"], argv[2:]
    if first in COMMANDS:
        return COMMANDS[first], argv[1:]
    longer = {name.split()[1]: command for name, command in COMMANDS.items() if name.startswith(f"{first} ")}
    if longer and second in ("", *HELP):
        return next(iter(longer.values())), ["--help"]
    if longer:
        raise InputError(f"{first} {second}: no such command; expected {suggest_choices(second, list(longer))}")
    known = list(dict.fromkeys(name.split()[0] for name in COMMANDS))
    raise InputError(f"{first}: no such command; expected {suggest_choices(first, known)}")


def _run_command(argv: Sequence[str]) -> int:
    if not argv or argv[0] in HELP:
        print_lines(*_list_help())
        return 0
    if argv[0] == "--version":
        command, rest = VERSION, argv[1:]
    else:
        command, rest = find_command(argv)
    options = parse_options(command, rest)
    result = _find_result(command, options)
    if result is None:
        return 0
    publish(result, options.json)
    return result.status


def _find_result(command: Command, options: Namespace) -> Result | None:
    """Run a command. With --json nothing but the document is on stdout, whatever a library or a method prints."""
    from specbench.running.progress import screen

    screen.quiet = options.quiet
    with redirect_stdout(sys.stderr) if options.json == STDOUT else nullcontext():
        return command.run(options)


def _list_help() -> list[str]:
    lines = ["usage: specbench COMMAND …", ""]
    for family, commands in FAMILIES.items():
        lines += [family, *(f"  {command.name:15} {command.summary}" for command in commands), ""]
    example = COMMANDS["run"]
    lines += [f"example: specbench {example.name} {example.example}"]
    return [*lines, "help: specbench COMMAND --help; what is installed: specbench --version"]


def main() -> None:
    """Run the command of sys.argv and exit with its status."""
    open_closed_streams()
    accept_any_text()
    warnings.filterwarnings("ignore")
    try:
        status = _run_command(sys.argv[1:])
        flush_output()
    except (Exception, KeyboardInterrupt) as error:
        status = explain(error)
    stop_logs()
    sys.exit(status)
