"""What a command says, and where: --json, --quiet, --version, log=FILE, help."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from specbench.cli.main import COMMANDS, FAMILIES
from specbench.cli.output import format_document, make_plain
from specbench.cli.parser import build_parser
from specbench.cli.version import find_commit
from specbench.errors import RECORD, InputError
from specbench.records.run_directory import RunDirectory
from specbench.running.log import start_log, stop_logs
from specbench.setup.compose import compose_run
from tests.conftest import Cli, Refuse, Tiny
from tests.fake_run import made_up_trials, write_run

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def write_pair(folder: Path) -> None:
    for name in ("old", "new"):
        write_run(folder / name, made_up_trials({"pld": 0.3}, ("qa", "rag"), 4))


@pytest.mark.parametrize(
    ("command", "keys"),
    [
        (["report", "old"], {"runs", "page", "files", "rows", "strata", "alarms"}),
        (["compare", "old", "new"], {"reference", "new", "verdict", "changes", "counted"}),
        (["list"], {"target", "method", "task", "suite", "engine", "experiment"}),
        (["export", "github", "old"], {"files"}),
        (["--version"], {"specbench", "commit", "python", "torch", "transformers"}),
        (["completion", "bash"], {"script"}),
    ],
)
def test_json_is_one_document_and_nothing_else(command: list[str], keys: set[str], cli: Cli, tmp_path: Path) -> None:
    write_pair(tmp_path)
    status, out, _ = cli(*command, "--json")
    document = json.loads(out, parse_constant=pytest.fail)
    assert status in (0, 1) and keys <= document.keys()
    cli(*command, "--json=document.json")
    assert json.loads((tmp_path / "document.json").read_text()).keys() == document.keys()


def test_json_never_takes_the_next_word_for_its_file(cli: Cli, tmp_path: Path) -> None:
    write_pair(tmp_path)
    assert json.loads(cli("report", "--json", "old").out)["runs"] == ["old"]
    assert RunDirectory(tmp_path / "old").is_run()


def test_json_has_the_numbers_of_the_table(cli: Cli, tmp_path: Path) -> None:
    write_pair(tmp_path)
    rows = json.loads(cli("report", "old", "--json").out)["rows"]
    summary = pd.read_csv(tmp_path / "reports" / "old" / "summary.csv")
    assert [row["speedup"] for row in rows] == pytest.approx(list(summary["speedup"]), abs=1e-4)
    assert any(value is None for row in rows for value in row.values()), "nan is null"


def test_an_error_with_json_is_one_line(refuse: Refuse) -> None:
    assert refuse("report", "nowhere", "--json").startswith("nowhere")
    assert refuse("run", "limit=0", "--json").startswith("limit=0")


def test_what_a_library_prints_does_not_break_the_document(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def noisy(*_: object) -> list[object]:
        print("a library's own words")
        return []

    monkeypatch.setattr("specbench.diagnose.doctor.run_checks", noisy)
    status, out, err = cli("doctor", "--json")
    assert status == 0 and json.loads(out) == {"ok": True, "checks": []} and "own words" in err


def test_plain_values() -> None:
    frame = pd.DataFrame({"a": [1.5, math.nan], "b": [pd.NA, Path("x")]})
    value: dict[str, Any] = {"frame": frame, "inf": math.inf, "numpy": np.float32(0.5), "pair": (np.int64(3), True), "text": "×"}
    plain = make_plain(value)
    rows = [{"a": 1.5, "b": None}, {"a": None, "b": "x"}]
    assert plain == {"frame": rows, "inf": None, "numpy": 0.5, "pair": [3, True], "text": "×"}
    assert format_document(value).isascii() and json.loads(format_document(value)) == plain


@pytest.mark.full
def test_quiet_leaves_the_result_alone(cli: Cli, tiny: Tiny) -> None:
    status, out, err = cli("run", "-q", *tiny.overrides("task=[qa]", "limit=1", "repeats=1", "out=results/quiet"))
    assert status == 0 and err == "" and "page: reports/quiet/index.html" in out and "turns" not in out.split("page:")[0]


@pytest.mark.full
def test_a_log_has_all_that_is_said_with_its_time(cli: Cli, tiny: Tiny, tmp_path: Path) -> None:
    chosen = tiny.overrides("task=[qa]", "method=[pld]", "limit=1", "repeats=1", "out=results/logged", "log=run.log")
    assert cli("run", "--quiet", *chosen).status == 0
    lines = (tmp_path / "run.log").read_text(encoding="utf-8").splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  \S", line) and not CONTROL.search(line) for line in lines)
    said = [line[21:] for line in lines]
    assert "results/logged: 2 turns" in said and said[-1] == "page: reports/logged/index.html"
    assert any(line.startswith("2/2 turns") for line in said) and any("one question" in line for line in said)
    assert "log" not in RunDirectory(Path("results/logged")).read_config(), "a log is no part of a run"

    status, _, err = cli("run", *chosen, "repeats=1", "seed=1")
    after = (tmp_path / "run.log").read_text(encoding="utf-8").splitlines()
    assert status == 2 and after[: len(lines)] == lines, "a log is appended to"
    assert after[-1][21:] == err.splitlines()[-1].removeprefix("specbench: ") and RECORD.handlers == []


@pytest.mark.parametrize("path", ["folder", "nowhere/run.log", "run.log/x"])
def test_a_log_that_cannot_be_written_is_refused_before_anything_loads(
    path: str, refuse: Refuse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "run.log").write_text("")
    monkeypatch.setattr("specbench.running.execute.execute", lambda *_: pytest.fail("executed"))
    assert refuse("run", f"log={path}").startswith(f"log={path}: ")
    assert refuse("run", f"log={path}", "limit=0").startswith("limit=0: "), "values come first"


def test_a_log_is_opened_once(tmp_path: Path) -> None:
    for _ in range(2):
        start_log(str(tmp_path / "log"))
    RECORD.info("once")
    stop_logs()
    assert (tmp_path / "log").read_text().count("once") == 1
    with pytest.raises(InputError, match="log="):
        start_log(str(tmp_path))


def test_a_log_has_no_part_in_a_runs_identity() -> None:
    assert compose_run(["log=x"]).recorded == compose_run([]).recorded


def test_the_version_names_the_commit_of_a_checkout(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = cli("--version").out
    assert re.match(r"specbench \d+\.\d+\.\d+", out) and re.search(r"torch \d.*, transformers \d", out)
    monkeypatch.setattr("specbench.cli.version.ROOT", tmp_path)
    assert find_commit() is None


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_short_help_with_an_example(name: str, cli: Cli) -> None:
    command = COMMANDS[name]
    assert 20 <= len(command.summary) <= 90 and command.summary.endswith((".", ")."))
    status, out, err = cli(*name.split(), "--help")
    assert (status, err) == (0, "") and f"example: specbench {name}" in out and "--json" in out and "--quiet" in out
    assert build_parser(command).prog == f"specbench {name}"


def test_the_help_lists_every_command(cli: Cli) -> None:
    out = cli().out
    for family, commands in FAMILIES.items():
        assert family in out and all(f"\n  {command.name} " in out for command in commands)
    assert max(map(len, out.splitlines())) <= 110


def test_a_command_that_is_not_there_gets_the_nearest(cli: Cli) -> None:
    assert cli("rnu").err.startswith("specbench: rnu: no such command; expected run, ")
    assert cli("datastore", "bild").err == "specbench: datastore bild: no such command; expected build\n"
    assert "expected REFERENCE and RUN" in cli("compare", "old").err


@pytest.mark.full
def test_values_are_checked_before_the_folder(cli: Cli, tiny: Tiny) -> None:
    chosen = tiny.overrides("task=[qa]", "method=[pld]", "limit=1", "repeats=1", "out=results/one")
    assert cli("run", *chosen).status == 0
    assert "method.pld.length=0: expected" in cli("run", *chosen, "seed=1", "method.pld.length=0").err
    assert "holds another run: its seed is 0" in cli("run", *chosen, "seed=1").err


def test_a_method_that_was_not_chosen_is_named(refuse: Refuse) -> None:
    said = refuse("run", "method=[pld]", "method.eagle.checkpoint=x")
    assert said == "method.eagle.checkpoint: method eagle is not among the chosen ones; expected method=[…,eagle]"
