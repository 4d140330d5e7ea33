"""One run with this checkout and another commit of it, whose turns alternate."""

import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from specbench import ROOT
from specbench.compare.comparison import REFERENCE_ENGINE
from specbench.compare.power import describe_paired_power
from specbench.errors import InputError
from specbench.machine.locks import hold_lock
from specbench.records.trial import BASELINE
from specbench.running.execute import execute
from specbench.running.log import start_log
from specbench.running.progress import ProgressDisplay, say, screen
from specbench.running.sweep import check_single_run
from specbench.setup.compose import compose_run

HERE = ("out", "log", "engine", "budget", "question", "category")  # settings that the other commit need not know


def run_both(ref: str, overrides: Sequence[str], config_dir: Path | None) -> Path:
    """Run both; the other commit's methods are METHOD@reference. Raises InputError for an unknown ref."""
    settings = compose_run([*overrides, f"engine=[native,{REFERENCE_ENGINE}]"], config_dir)
    check_single_run(settings, overrides, "compare --against")
    start_log(settings.log)
    with _check_out(ref) as root:
        say(screen, describe_paired_power(len({BASELINE, *settings.method})))
        other = [override for override in overrides if override.partition("=")[0] not in HERE]
        folder = str(config_dir.resolve()) if config_dir else None
        settings = settings.with_engine(REFERENCE_ENGINE, root=str(root), overrides=other, config_dir=folder)
        with ProgressDisplay() as display:
            try:
                return execute(settings, display)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(display.run) from None


@contextmanager
def _check_out(ref: str) -> Iterator[Path]:
    """Check out a commit for a while, below ROOT and named after the commit, so that a run can be resumed."""
    commit = _run_git("rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}")
    if commit is None:
        raise InputError(f"--against {ref}: no commit, branch or tag of specbench's repository")
    root = Path("build") / f"reference-{commit[:12]}"
    (ROOT / "build").mkdir(exist_ok=True)
    on_wait = partial(say, screen, "waiting for another comparison with this commit")
    with hold_lock(ROOT / f"{root}.lock", on_wait, "compare in another clone"), _catch_sigterm():
        try:
            _run_git("worktree", "remove", "--force", str(root))  # left by a killed run
            if _run_git("worktree", "add", "--force", "--detach", str(root), commit) is None:
                raise InputError(f"--against {ref}: git cannot check it out into {ROOT / root}")
            yield root
        finally:
            _run_git("worktree", "remove", "--force", str(root))


@contextmanager
def _catch_sigterm() -> Iterator[None]:
    """Treat SIGTERM like Ctrl-C, so that the cleanup runs."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run_git(*words: str) -> str | None:
    """Return the output of git, None if it fails. Raises InputError without git."""
    try:
        process = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise InputError("--against needs git, which is not installed") from None
    return None if process.returncode else process.stdout.strip()
