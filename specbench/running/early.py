"""What of a run can be checked before torch is imported, so that a mistake is said in a second."""

from specbench.running.resume import choose_run_directory
from specbench.setup.questions import check_tasks
from specbench.setup.settings import RunSettings


def check_early(settings: RunSettings) -> None:
    """Raise InputError for a suite or a task that does not exist, and for a folder that holds something else than a run."""
    check_tasks(settings)
    choose_run_directory(settings.out, settings.target.name)
