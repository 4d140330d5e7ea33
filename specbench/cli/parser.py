"""Commands and their options: a parser whose errors are one line."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from specbench import ROOT
from specbench.cli.output import STDOUT, Result
from specbench.errors import InputError

WIDTH = 100  # columns of the summaries in a list of commands


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises InputError."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


def _add_nothing(_: Parser) -> None:
    """Add no option."""


@dataclass(frozen=True)
class Command:
    """A command. run: what it does, its docstring being the help; None: another process tells its result.

    name: one word or two. example: its arguments. root: the root config whose settings it takes as KEY=VALUE.
    """

    name: str
    run: Callable[[argparse.Namespace], Result | None]
    example: str
    add_options: Callable[[Parser], None] = _add_nothing
    root: str | None = None
    mixed: bool = False  # options may stand between words, as they do where there are settings

    @property
    def summary(self) -> str:
        return (self.run.__doc__ or "").partition("\n")[0]


def parse_folder(text: str) -> Path:
    """Return a folder from the command line. Raises ArgumentTypeError for an empty text: pathlib takes it for the working one."""
    if not text.strip():
        raise argparse.ArgumentTypeError("expected a folder; . is this one")
    return Path(text)


def build_parser(command: Command) -> Parser:
    """Return the parser of a command, with the options that all commands share."""
    parser = Parser(
        prog=f"specbench {command.name}",
        description=command.run.__doc__,
        epilog=f"example: specbench {command.name} {command.example}".rstrip() + _describe_settings(command.root),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_options(parser)
    if command.root:
        parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings, such as method=[pld,sps] limit=10")
        add_config_dir(parser)
    parser.add_argument("-q", "--quiet", action="store_true", help="print the result, alarms and errors only")
    document = "print the result as one JSON document; with =FILE write it there, too"
    parser.add_argument("--json", nargs="?", const=STDOUT, metavar="=FILE", help=document)
    return parser


def add_config_dir(parser: Parser) -> None:
    parser.add_argument("--config-dir", type=Path, metavar="DIR", help="a further folder of YAMLs, like conf/")


def _describe_settings(root: str | None) -> str:
    if root is None:
        return ""
    settings = (ROOT / "conf" / f"{root}.yaml").read_text(encoding="utf-8").split("\nhydra:")[0]
    return f"\n\nThe settings and their defaults (specbench list: the choices)\n\n{settings}"


def parse_options(command: Command, argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command's arguments. Raises InputError for a setting that is no KEY=VALUE, and for a --json that is no file."""
    words = [f"--json={STDOUT}" if word == "--json" else word for word in argv]  # else it would take the next word
    parser = build_parser(command)
    mixed = command.mixed or command.root
    options = parser.parse_intermixed_args(words) if mixed else parser.parse_args(words)
    if command.root:
        from specbench.setup.words import check_words

        options.overrides = check_words(options.overrides, options.config_dir)
    if options.json != STDOUT:
        check_file("--json", options.json and Path(options.json))
    return options


def check_file(option: str, path: Path | None) -> None:
    """Raise InputError, before anything is done, for a path that cannot be a file to write."""
    if path and path.exists() and not path.is_file():
        raise InputError(f"{option} {path}: expected a file, but this is a folder or something else")
