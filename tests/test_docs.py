"""README, CONTRIBUTING and docs: links lead to files, command lines parse, Python blocks run."""

from __future__ import annotations

import io
import json
import re
import shlex
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from specbench import ROOT
from specbench.cli import main as cli
from specbench.cli.parser import parse_options
from specbench.exchange.ids import read_ids
from specbench.setup.compose import CONF, compose_certify, compose_datastore, compose_run, compose_train

CONTRIBUTING = ROOT / "CONTRIBUTING.md"
PAGES = [ROOT / "README.md", CONTRIBUTING, ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
METHODS = {"mine": "from_tokens", "echo": "reading_target", "onehead": "trained"}  # of the worked pages
OWN_CONF = "my/conf"  # a reader's folder, with the methods and launchers of the pages

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def blocks(page: Path, language: str) -> list[str]:
    return [text for name, text in FENCE.findall(page.read_text(encoding="utf-8")) if name == language]


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def shell_lines(page: Path) -> Iterator[str]:
    """The lines of shell blocks, and the code inside sentences."""
    for block in blocks(page, "sh"):
        yield from block.replace("\\\n", " ").splitlines()
    yield from (" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(page)))


# Links


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_every_relative_link_leads_to_a_file(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        linked = page.parent / file if file else page
        assert linked.exists(), link
        assert not anchor or anchor in anchors(linked), link


# Command lines


COMPOSE: dict[str, Any] = {"train": compose_train, "datastore": compose_datastore, "certify": compose_certify}


def command_lines() -> list[str]:
    """Return every specbench command line once, without commands that are only mentioned or abbreviated."""
    lines = [shlex.split(line, comments=True) for page in PAGES for line in shell_lines(page) if line.startswith("specbench ")]
    whole = [words for words in lines if "…" not in words and words[2:] not in ([], ["build"])]
    return list(dict.fromkeys(map(shlex.join, whole)))


def first_of_each(overrides: Sequence[str]) -> list[str]:
    """Return the overrides of a sweep's first job."""
    first = []
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        swept = override.is_discrete_sweep()
        value = f"{override.get_key_element()}={next(override.sweep_string_iterator())}" if swept else override.input_line
        first.append(str(value))
    return first


def write_own_conf(folder: Path) -> Path:
    """The YAMLs of the worked methods, of docs/machines.md's launcher and of docs/howto_server.md's experiment."""
    pages = {f"method/{method}": f"method_{kind}.md" for method, kind in METHODS.items()}
    others = {"hydra/launcher/cluster": "machines.md", "experiment/draft_lengths": "howto_server.md"}
    for name, page in {**pages, **others}.items():
        if (CONF / f"{name}.yaml").is_file():
            continue  # a reader has followed the page in this very checkout
        (text,) = blocks(ROOT / "docs" / page, "yaml")
        path = folder / OWN_CONF / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder / OWN_CONF


@pytest.mark.parametrize("line", command_lines())
def test_every_command_line_parses_and_its_settings_compose(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    line = re.split(" '[>|]' ", line)[0]  # without what its output goes to
    _, *argv = [word for word in shlex.split(line) if not re.search("…|=NAME$", word)]
    write_own_conf(tmp_path)
    if any(re.search(rf"method=\[?({'|'.join(METHODS)})\b", word) for word in argv):
        argv += ["--config-dir", OWN_CONF]
    if {"--help", "--version"} & {*argv}:
        return
    command, rest = cli.find_command(argv)
    options = parse_options(command, rest)
    overrides = options.overrides if command.root else options.words if getattr(options, "against", None) else None
    if overrides is not None:
        first = first_of_each(overrides) if getattr(options, "multirun", False) else overrides
        COMPOSE.get(command.root or "", compose_run)(first, options.config_dir)


def test_a_launcher_of_ones_own_composes(tmp_path: Path) -> None:
    compose_run(["hydra/launcher=cluster"], write_own_conf(tmp_path))


SERVERS = ("sglang",)  # which run elsewhere


@every_page
def test_commands_modules_and_make_targets_that_a_page_names_exist(page: Path) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for line in shell_lines(page):
        if command := re.match(r"specbench ([a-z]+)", line):
            assert command[1] in {name.split()[0] for name in cli.COMMANDS}, line
        module = re.search(r"\bpython -m ([\w.]+)", line)
        if module and module[1].partition(".")[0] not in SERVERS:
            assert find_spec(module[1]), line
        if target := re.match(r"make ([\w-]+)", line):
            assert target[1] in targets, line


# Python


def surroundings(log: io.StringIO) -> dict[str, Any]:
    """Return the names that docs/replay.md assumes: an engine that answers one prompt, and a file to log to."""
    answer = SimpleNamespace(token_ids=(14, 15, 1), finish_reason="stop")
    out = SimpleNamespace(prompt_token_ids=(11, 12, 13), outputs=[answer])
    engine = SimpleNamespace(generate=lambda prompts, params: [out])
    return {"json": json, "questions": ["?"], "prompts": ["?"], "llm": engine, "SamplingParams": SimpleNamespace, "log": log}


def run_blocks(page: Path, log: io.StringIO | None = None) -> dict[str, Any]:
    """Run a page's Python blocks and return the names they define."""
    names = surroundings(log or io.StringIO())
    for code in blocks(page, "python"):
        exec(compile(code, page.name, "exec"), names)
    return names


@every_page
def test_every_python_block_runs(page: Path) -> None:
    run_blocks(page)


def test_replay_reads_what_the_page_logs(tmp_path: Path) -> None:
    log = io.StringIO()
    run_blocks(ROOT / "docs" / "replay.md", log)
    path = tmp_path / "ids.jsonl"
    path.write_text(log.getvalue(), encoding="utf-8")
    ((_, recorded),) = read_ids(path, max_new_tokens=256)
    assert (recorded.prompt, recorded.output, recorded.stops) == ([11, 12, 13], [14, 15, 1], (1,))
