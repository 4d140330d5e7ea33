"""What the commands share: the console, and a parser whose errors are one line."""

import argparse
import codecs
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from specbench.errors import OUTPUT, InputError, escape_controls

PLAIN = {"×": "x", "–": "-", "−": "-", "±": "~", "…": ".", "·": ".", "≤": "<", "≥": ">", "\N{NO-BREAK SPACE}": " ", "τ": "t"}


@contextmanager
def name_output() -> Iterator[None]:
    """Name standard output in an OSError, such as that of a full disk."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, OUTPUT) from None


class _Console(Console):
    """A console that tells when nobody reads any more; rich's own exits with status 1, which here means "no"."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError

    def print(self, *objects: Any, **options: Any) -> None:
        with name_output():
            super().print(*objects, **options)


console = _Console(markup=False, emoji=False)  # labels and errors are shown as they are, [brackets] included
LOG_WIDTH = 140  # columns for tables outside a terminal, where rich would use 80


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises InputError."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


def parse_folder(text: str) -> Path:
    """Return a folder from the command line. Raises ArgumentTypeError for an empty text: pathlib takes it for the working one."""
    if not text.strip():
        raise argparse.ArgumentTypeError("expected a folder; . is this one")
    return Path(text)


def build_parser(command: str, description: str | None, root: str = "config") -> Parser:
    """Return the parser of a command that takes KEY=VALUE settings of a root config."""
    from specbench.setup.compose import CONF

    settings = (CONF / f"{root}.yaml").read_text(encoding="utf-8").split("\nhydra:")[0]
    parser = Parser(
        prog=f"specbench {command}",
        description=description,
        epilog=f"The settings and their defaults (specbench list: the choices)\n\n{settings}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="such as method=[pld,sps] limit=10 out=results/my-run")
    parser.add_argument("--config-dir", type=Path, metavar="DIR", help="a further folder of YAMLs, like conf/")
    return parser


def parse_options(parser: Parser, argv: list[str]) -> argparse.Namespace:
    """Parse a command line into options and overrides. Raises InputError for anything but KEY=VALUE."""
    options = parser.parse_intermixed_args(argv)
    from specbench.setup.words import check_words

    options.overrides = check_words(options.overrides, options.config_dir)
    return options


def widen_console() -> None:
    """Make room for wide tables outside a terminal."""
    if not console.is_terminal:
        console.width = max(console.width, LOG_WIDTH)


def print_lines(*lines: object) -> None:
    """Print each line as it is: no markup, no colours, no wrapping, and no control of the terminal."""
    for line in lines:
        console.print(escape_controls(str(line)), highlight=False, soft_wrap=True)


def accept_any_text() -> None:
    """Let standard output take characters that its encoding lacks, such as × in ASCII: like ones or escapes replace them."""
    codecs.register_error("specbench", _replace_characters)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="specbench")


def _replace_characters(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(PLAIN.get(character) or ascii(character)[1:-1] for character in text), error.end
