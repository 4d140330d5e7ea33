"""What is installed: specbench, its commit in a checkout, and the libraries that decide most of a measurement."""

import platform
import subprocess
from argparse import Namespace
from importlib.metadata import PackageNotFoundError, version

from specbench import ROOT, __version__
from specbench.cli.output import Result

LIBRARIES = ("torch", "transformers")


def show_version(_: Namespace) -> Result:
    """Say what is installed, without importing it."""
    commit = find_commit()
    libraries = {name: _find_version(name) for name in LIBRARIES}
    document = {"specbench": __version__, "commit": commit, "python": platform.python_version(), **libraries}
    others = ", ".join(f"{name} {found or 'not installed'}" for name, found in libraries.items())
    first = f"specbench {__version__}" + (f" (commit {commit})" if commit else "")
    return Result(document, [first, f"Python {document['python']}, {others}"])


def find_commit() -> str | None:
    """Return the checkout's commit, ending in -dirty with uncommitted changes; None where there is none, or no git."""
    if not (ROOT / ".git").exists():
        return None
    words = ["git", "--no-optional-locks", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _find_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
