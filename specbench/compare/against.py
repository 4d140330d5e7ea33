"""A run of this checkout and of another commit of it, whose turns alternate."""

import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from rich.console import Console

from specbench import ROOT
from specbench.compare.comparison import REFERENCE_ENGINE
from specbench.errors import InputError
from specbench.machine.locks import hold_lock
from specbench.running.execute import execute
from specbench.running.progress import ProgressDisplay
from specbench.running.sweep import check_single_run
from specbench.setup.compose import compose_run


def run_both(ref: str, overrides: Sequence[str], config_dir: Path | None, console: Console) -> Path:
    """The run directory. Methods of the other commit are called METHOD@reference. Raises InputError for no such ref."""
    settings = compose_run([*overrides, f"engine=[native,{REFERENCE_ENGINE}]"], config_dir)
    check_single_run(settings, overrides, "compare --against")
    with _check_out(ref, console) as root:
        other = [override for override in overrides if override.partition("=")[0] not in ("out", "engine")]
        folder = str(config_dir.resolve()) if config_dir else None
        settings = settings.with_engine(REFERENCE_ENGINE, root=str(root), overrides=other, config_dir=folder)
        with ProgressDisplay(console) as display:
            try:
                return execute(settings, display)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(display.run) from None


@contextmanager
def _check_out(ref: str, console: Console) -> Iterator[Path]:
    """A folder with the files of a commit, gone afterwards; below ROOT, and called after the commit, so that a run can go on."""
    commit = _run_git("rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}")
    if commit is None:
        raise InputError(f"--against {ref}: no commit, branch or tag of specbench's repository")
    root = Path("build") / f"reference-{commit[:12]}"
    (ROOT / "build").mkdir(exist_ok=True)
    waiting = partial(console.print, "waiting for another comparison with this commit")
    with hold_lock(ROOT / f"{root}.lock", waiting, "compare in another clone"), _catch_sigterm():
        try:
            _run_git("worktree", "remove", "--force", str(root))  # of a run that was killed
            if _run_git("worktree", "add", "--force", "--detach", str(root), commit) is None:
                raise InputError(f"--against {ref}: git cannot check it out into {ROOT / root}")
            yield root
        finally:
            _run_git("worktree", "remove", "--force", str(root))


@contextmanager
def _catch_sigterm() -> Iterator[None]:
    """SIGTERM is as Ctrl-C, so that what is to be done at the end is done."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run_git(*words: str) -> str | None:
    """What it prints; None where it fails."""
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
    return None if done.returncode else done.stdout.strip()
