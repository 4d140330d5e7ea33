"""Start a run from its settings. What needs no torch is checked first, so a mistake is reported within a second."""

from pathlib import Path

from specbench.running.resume import choose_run_directory
from specbench.setup.questions import check_tasks
from specbench.setup.settings import RunSettings


def start_run(settings: RunSettings) -> Path:
    """Execute a run, show its progress, and return the run directory.

    Raises InputError; KeyboardInterrupt carries the run directory, once that is known.
    """
    check_early(settings)
    from specbench.running.progress import ProgressDisplay

    with ProgressDisplay() as display:
        try:
            from specbench.machine.devices import keep_threads
            from specbench.running.execute import execute

            with keep_threads():
                return execute(settings, display)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(*filter(None, [display.run])) from None


def check_early(settings: RunSettings) -> None:
    """Raise InputError for a suite or a task that does not exist, and for a folder that holds something else than a run."""
    check_tasks(settings)
    choose_run_directory(settings.out, settings.target.name)
