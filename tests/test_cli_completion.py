"""What a shell completes, asked in Python and in a real bash."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from specbench import ROOT
from specbench.cli.completion import GROUPS, LISTS, list_completions
from specbench.cli.shells import SCRIPTS
from specbench.setup import compose, overrides
from tests.conftest import Cli

ASKED = [
    ("re", {"report ", "replay "}),
    ("datastore ", {"build "}),
    ("export g", {"gguf ", "github "}),
    ("compare --a", {"--add ", "--against "}),
    ("run --m", {"--multirun "}),
    ("run tar", {"target="}),
    ("run target=mi", {"target=mini "}),
    ("run method=[pld,sps_t", {"method=[pld,sps_tli"}),
    ("run -m method=pld,sps_t", {"method=pld,sps_tli "}),
    ("run context=", {"context=own ", "context=reference "}),
    ("run check_baseline=t", {"check_baseline=true "}),
    ("run target.dtype=f", {"target.dtype=float32 ", "target.dtype=float16 "}),
    ("run method.pld.max", {"method.pld.max_ngram="}),
    ("run method.pl", {f"method.pld{kind}." for kind in ("", "_beyond", "_spec_bench", "_vllm")}),
    ("run hydra/l", {"hydra/launcher="}),
    ("certify forward=c", {"forward=compiled "}),
    ("compare --against HEAD eng", {"engine="}),
    ("completion z", {"zsh "}),
    ("run out=res", set[str]()),
    ("report res", set[str]()),
    ("nothing x", set[str]()),
]


@pytest.mark.parametrize(("line", "expected"), ASKED)
def test_what_a_line_can_become(line: str, expected: set[str]) -> None:
    assert set(list_completions(line.split(" "))) == expected


def test_all_choices_of_a_group_are_offered() -> None:
    for group in ("target", "suite", "experiment"):
        assert list_completions(["run", f"{group}="]) == [f"{group}={name} " for name in compose.list_options(group)]
    assert set(GROUPS) == set(compose.GROUPS) and set(LISTS) == set(overrides.LISTS)


def test_the_yamls_of_another_folder_are_choices_too(tmp_path: Path) -> None:
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_text("# @package method.mine\nlength: 3\n")
    assert list_completions(["run", "--config-dir", str(tmp_path), "method=[mi"]) == ["method=[mine"]
    assert list_completions(["run", "--config-dir", str(tmp_path), "method.mine."]) == ["method.mine.length="]


def test_a_shell_that_is_not_known_is_named(cli: Cli) -> None:
    assert "completion tcsh: expected bash, zsh or fish" in cli("completion", "tcsh").err
    for shell in SCRIPTS:
        assert "_specbench" in cli("completion", shell).out


@pytest.mark.full
def test_in_a_real_bash(tmp_path: Path) -> None:
    program = tmp_path / "specbench"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m specbench "$@"\n')
    program.chmod(0o755)
    script = f"""
        PATH={tmp_path}:$PATH
        source <(specbench completion bash)
        ask() {{ COMP_LINE="$1"; COMP_POINT=${{#1}}; _specbench specbench; echo "${{COMPREPLY[@]}}"; }}
        complete -p specbench
        ask "specbench re"; ask "specbench run method=[pld,sps_t"; ask "specbench run context="; ask "specbench report x"
    """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=120)
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    assert lines[0].endswith("-F _specbench specbench") and not done.stderr
    assert lines[1:] == ["replay  report", "[pld,sps_tli", "own  reference", ""], "bash replaces only what comes after ="


@pytest.mark.full
def test_completion_imports_neither_torch_nor_hydra() -> None:
    code = "import sys; from specbench.cli.completion import list_completions; print(list_completions(['run', 'method=[pl']))"
    code += "; print(sorted({'torch', 'transformers', 'hydra', 'pandas'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]" and "method=[pld" in done.stdout, done.stderr
