"""Completion for shells: what a command line can go on with. Imports neither Hydra nor torch, so that a shell need not wait."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from specbench import ROOT
from specbench.cli.output import Result
from specbench.cli.parser import Command, Parser, build_parser
from specbench.cli.shells import SCRIPTS
from specbench.errors import InputError, suggest_choices

GROUPS = ("target", "method", "task", "suite", "engine", "experiment")  # folders of conf/
LISTS = ("method", "task", "engine")  # groups of which several can be chosen: [a,b]
LAUNCHER = "hydra/launcher"
KNOWN = {  # values that no type names
    "target.device": ("auto", "cpu", "cuda", "mps"),
    "target.dtype": ("auto", "float32", "bfloat16", "float16"),
    "target.quantize": ("int8", "null"),
}


def add_completion_options(parser: Parser) -> None:
    parser.add_argument("shell", metavar="bash|zsh|fish")
    parser.add_argument("line", nargs="?", metavar="LINE", help="print what this command line can go on with, as the scripts ask")


def completion(options: argparse.Namespace) -> Result:
    """Print a script that completes commands, options and settings in a shell."""
    if options.shell not in SCRIPTS:
        raise InputError(f"completion {options.shell}: expected {suggest_choices(options.shell, list(SCRIPTS))}")
    if options.line is None:
        return Result({"script": SCRIPTS[options.shell]}, [SCRIPTS[options.shell]])
    words = list_completions(options.line.split(" ")[1:])
    return Result({"words": words}, words)


def list_completions(words: Sequence[str]) -> list[str]:
    """Return what the last word can become, sorted; a space at its end says that it is complete.

    words: after the program's name; the last may be empty. Nothing is returned where a path is expected.
    """
    from specbench.cli.main import COMMANDS, HELP

    *before, word = words or [""]
    before = [one for one in before if one]
    if not before:
        starts = (*(name.split()[0] for name in COMMANDS), *HELP, "--version")
        return _select(word, (f"{start} " for start in starts))
    seconds = [name.split()[1] for name in COMMANDS if name.startswith(f"{before[0]} ")]
    if len(before) == 1 and seconds:
        more = ["github", "spec_bench", "bencher", "asv", "stripped"] if before[0] == "export" else []
        return _select(word, (f"{second} " for second in [*seconds, *more]))
    command = COMMANDS.get(" ".join(before[:2])) or COMMANDS.get(before[0])
    if command is None:
        return []
    if word.startswith("-"):
        return _select(word, (f"{option} " for option in _list_option_strings(command)))
    if command.name == "completion":
        return _select(word, (f"{shell} " for shell in SCRIPTS))
    root = command.root or ("config" if "--against" in before else None)
    return _complete_setting(word, before, root) if root else []


def _select(word: str, candidates: Iterator[str] | Sequence[str]) -> list[str]:
    return sorted({candidate for candidate in candidates if candidate.startswith(word)})


def _list_option_strings(command: Command) -> list[str]:
    return [option for action in build_parser(command)._actions for option in action.option_strings]


def _complete_setting(word: str, before: Sequence[str], root: str) -> list[str]:
    """Return the keys, or the values of a key, that a word can become."""
    given = dict(one.split("=", 1) for one in before if "=" in one)
    folders = [ROOT / "conf", *_find_config_dir(before)]
    key, equals, value = word.partition("=")
    if not equals:
        return _select(word, _list_keys(word, given, folders, root))
    if key in GROUPS or key == LAUNCHER:
        return _complete_choice(key, value, _list_choices(key, folders))
    return _select(word, (f"{key}={choice} " for choice in _list_values(key, root)))


def _find_config_dir(before: Sequence[str]) -> list[Path]:
    after = zip(before, before[1:], strict=False)
    named = [folder for option, folder in after if option == "--config-dir"]
    return [Path(one) for one in [*named, *(one.partition("=")[2] for one in before if one.startswith("--config-dir="))]]


def _list_choices(group: str, folders: Sequence[Path]) -> list[str]:
    return sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})


def _complete_choice(group: str, value: str, choices: Sequence[str]) -> list[str]:
    """Complete the last name of a value: of [a,b in a list, of a,b in a sweep, or the only one."""
    start = max(value.rfind("["), value.rfind(",")) + 1
    head, taken = f"{group}={value[:start]}", value[:start].strip("[,").split(",")
    opens = ["["] if group in LISTS and not value else []
    end = "" if "[" in value else " "
    found = [f"{head}{choice}{end}" for choice in choices if choice not in taken]
    return _select(f"{group}={value}", [*found, *(f"{head}{bracket}" for bracket in opens)])


def _list_keys(word: str, given: dict[str, str], folders: Sequence[Path], root: str) -> Iterator[str]:
    """Yield the settings, each with its =: of groups, whose YAMLs have many, only if the word begins with one."""
    plain = _read_yaml(ROOT / "conf" / f"{root}.yaml")
    groups = {next(iter(one)).removeprefix("optional ") for one in plain.pop("defaults", []) if isinstance(one, dict)}
    plain.pop("hydra", None)
    own = [*(group for group in GROUPS if group in groups), *_flatten(plain), *([LAUNCHER] if root == "config" else [])]
    yield from (f"{key}=" for key in own)
    for group in ("target", "suite", "engine", "method"):
        if word.startswith(f"{group}."):
            yield from _list_group_keys(group, word, given, folders)


def _list_group_keys(group: str, word: str, given: dict[str, str], folders: Sequence[Path]) -> Iterator[str]:
    """Yield the keys of the chosen YAML of a group; of a list group the names, then the keys of the one that is named."""
    listed = group in LISTS
    named = word.split(".")[1] if listed else given.get(group, "mini")
    if listed and word.count(".") == 1:
        yield from (f"{group}.{name}." for name in _list_choices(group, folders))
    for folder in folders:
        keys = _flatten(_read_yaml(folder / group / f"{named}.yaml"))
        prefix = f"{group}.{named}" if listed else group
        yield from (f"{prefix}.{key}=" for key in keys if not key.startswith(("_target_", "defaults")))


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _flatten(plain: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in plain.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _list_values(key: str, root: str) -> list[str]:
    """Return the values that the type of a setting names."""
    if key in KNOWN:
        return list(KNOWN[key])
    from specbench.setup import settings

    every = (settings.RunSettings, settings.CertifySettings, settings.TrainSettings, settings.DatastoreSettings)
    kinds: dict[str, type] = {kind.root: kind for kind in every}
    section, _, name = key.rpartition(".")
    kind = settings.SECTIONS.get(section) if section else kinds[root]
    return list(_iter_literals(get_type_hints(kind).get(name))) if kind else []


def _iter_literals(hint: Any) -> Iterator[str]:
    if hint is bool:
        yield from ("true", "false")
    elif get_origin(hint) is Literal:
        yield from map(str, get_args(hint))
    else:
        for inner in get_args(hint):
            yield from _iter_literals(inner)


COMMANDS = (Command("completion", completion, "bash", add_completion_options),)
