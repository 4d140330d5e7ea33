"""Start a run from its settings. What can be checked before torch is imported is checked first: a mistake is told in a second."""

from pathlib import Path

from rich.console import Console

from specbench.running.resume import choose_run_directory
from specbench.setup.questions import check_tasks
from specbench.setup.settings import RunSettings


def start_run(settings: RunSettings, console: Console) -> Path:
    """Execute a run, show its progress on the console, and return the run directory.

    Raises InputError; KeyboardInterrupt carries the run directory, once that is known.
    """
    check_early(settings)
    from specbench.machine.devices import keep_threads
    from specbench.running.execute import execute
    from specbench.running.progress import ProgressDisplay

    with keep_threads(), ProgressDisplay(console) as display:
        try:
            return execute(settings, display)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(*filter(None, [display.run])) from None


def check_early(settings: RunSettings) -> None:
    """Raise InputError for a suite or a task that does not exist, and for a folder that holds something else."""
    choose_run_directory(settings.out, settings.target.name, settings.recorded)
    check_tasks(settings)
