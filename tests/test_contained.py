"""What a stranger's run, a label or a special file cannot do: leave its folder, write over files, block, command the terminal."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from specbench.analysis.loaded_run import read_run
from specbench.errors import InputError
from specbench.records.files import read_text
from specbench.records.names import make_file_name
from specbench.records.run_directory import RunDirectory
from tests.conftest import Cli, Refuse, contents
from tests.fake_run import failed, made_up_trials, trial, write_run
from tests.whole_run import WHOLE, write_whole_run


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_whole_run(tmp_path_factory.mktemp("whole") / "run")


# Special files


@pytest.mark.parametrize("file", ["trials.jsonl", "run.json", "config.yaml", "texts.jsonl"])
def test_a_pipe_or_a_device_in_a_run_is_refused_and_waits_for_nobody(stored: Path, tmp_path: Path, file: str) -> None:
    folder = Path(shutil.copytree(stored, tmp_path / "run"))
    for make in (os.mkfifo, lambda path: Path(path).symlink_to("/dev/zero")):
        (folder / file).unlink()
        make(folder / file)
        with pytest.raises(InputError, match=f"{file}: expected a file, found a|is not a run directory: it has no {file}"):
            read_run(folder)


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, said in (("pipe", "found a pipe"), (".", "found a folder"), ("none", "no such file"), ("a\0b", "cannot be read")):
        with pytest.raises(InputError, match=said):
            read_text(tmp_path / path)
    with pytest.raises(InputError, match="found a device"):
        read_text(Path("/dev/zero"))


@pytest.mark.parametrize("command", [("replay", "method=[pld]", "--of"), ("import", "--out", "x", "--baseline"), ("report",)])
def test_a_pipe_on_the_command_line(refuse: Refuse, tmp_path: Path, command: tuple[str, ...]) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "pipe" in refuse(*command, "pipe")


def test_a_link_in_a_strangers_run_is_not_written_through(stored: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(stored, tmp_path / "run"))
    (tmp_path / "victim").write_text("{")
    writes: list[tuple[str, Callable[[RunDirectory], object]]] = [
        ("trials.jsonl", lambda run: run.append_trials(trial("pld", [2], 1.0))),
        ("trials.jsonl", lambda run: run.repair()),
        ("texts.jsonl", lambda run: run.append_text("pld", 1, 0, "", None)),
        ("run.json", lambda run: run.write_provenance({})),
        ("summary.csv", lambda run: run.write_summary("")),
    ]
    for file, write in writes:
        (folder / file).unlink()
        (folder / file).symlink_to(tmp_path / "victim")
        try:
            write(RunDirectory(folder))
        except InputError as refused:
            assert "nothing is written there" in str(refused)
        assert (tmp_path / "victim").read_text() == "{", file


# Names as paths

NAMES = ("../../victim/trials", "/etc/passwd", "..", ".", "", "a/b", "a\\b", "x" * 5000, ".hidden", "a.", "é" * 200, "\udc80")


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_a_name_is_one_component_of_a_path(tmp_path: Path, name: str) -> None:
    check_component(tmp_path, name)


def check_component(folder: Path, name: str) -> None:
    made = make_file_name(name)
    assert (folder / f"{made}.jsonl").parent == folder and made not in ("", ".", "..") and "/" not in made and "\0" not in made
    assert len(made.encode()) < 200


def test_names_that_differ_stay_different() -> None:
    names = [*NAMES, "%2E%2E", "a%2Fb", "%", "x" * 5001, "pld", "pld@hf", "AMD EPYC (Zen 4) @ 2.5"]
    assert len({make_file_name(name) for name in names}) == len(names)
    assert [make_file_name(name) for name in names[-3:]] == names[-3:]


@pytest.mark.parametrize("label", ["../../victim/trials", "/tmp/victim", "..", "a[/x]b"])
def test_an_export_stays_in_its_folder(cli: Cli, tmp_path: Path, label: str) -> None:
    trials = made_up_trials({label: 0.4}, ("qa",), 2)
    run = write_run(tmp_path / "run", trials, device={"name": ".."}, git={"commit": "../../x", "dirty": False})
    run.write_config(WHOLE | {"target": {"name": "../../up", "shape": None, "dtype": None}, "method": {label: {}}})
    for one in trials:
        run.append_text(one.method, one.question_id, 0, "w", None)
    (tmp_path / "victim").mkdir()
    before = contents(tmp_path)
    for form in ("spec_bench", "github", "bencher", "asv"):
        done = cli("export", form, "run", "--out", "out/deep/exports")
        assert done.status == 0, done.err
    changed = {path for path, content in contents(tmp_path).items() if before.get(path) != content}
    assert changed and all(path.is_relative_to(tmp_path / "out/deep/exports") for path in changed)
    assert all(path.exists() for path in before)


def test_a_page_of_others_is_not_overwritten(refuse: Refuse, cli: Cli, stored: Path, tmp_path: Path) -> None:
    shutil.copytree(stored, tmp_path / "run")
    for folder, file in (("docs", "index.html"), ("data", "summary.csv")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).write_text("<h1>mine</h1>")
        said = refuse("report", "run", "--out", folder)
        assert said == f"--out {folder}: holds a file {file} that specbench did not write; choose another folder"
    assert refuse("paper", "--out", "docs").startswith("--out docs: holds a file index.html")
    assert refuse("report", "run", "--out", "run") == "--out run: holds a run; choose another folder"
    assert [path.name for path in (tmp_path / "docs").iterdir()] == ["index.html"]
    for _ in range(2):
        assert cli("report", "run", "--out", "page").status == 0, "its own page is made again"


@pytest.mark.parametrize("option", ["--json", "--junit", "--markdown"])
def test_a_folder_is_no_file_for_results(refuse: Refuse, stored: Path, tmp_path: Path, option: str) -> None:
    for name in ("old", "new"):
        shutil.copytree(stored, tmp_path / name)
    (tmp_path / "folder").mkdir()
    assert (
        refuse("compare", "old", "new", f"{option}=folder")
        == f"{option} folder: expected a file, but this is a folder or something else"
    )


# What is printed


@pytest.mark.parametrize("label", ["a[/x]b", "[bold]a", ":smile:", "a\\[b", "−×", "[link=http://x]y"])
def test_a_label_is_printed_as_it_is(cli: Cli, tmp_path: Path, label: str) -> None:
    write_run(tmp_path / "run", [*made_up_trials({label: 0.4}, ("qa",), 2), failed(label, question_id=9)])
    done = cli("report", "run")
    assert done.status == 0 and label in done.out, done.err


def test_standard_output_in_ascii(stored: Path, tmp_path: Path) -> None:
    """In a process of its own, as streams get their encoding at the start."""
    shutil.copytree(stored, tmp_path / "run")
    shutil.copytree(stored, tmp_path / "again")
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "LANG": "C", "PYTHONPATH": str(Path.cwd())}
    for command in (["report", "run"], ["compare", "run", "again"], ["--help"], ["report", "--help"]):
        done = subprocess.run(
            [sys.executable, "-m", "specbench", *command], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0 and done.stdout.isascii() and done.stderr.isascii(), done.stderr
