"""The suite that settings name, and its questions. Imports no torch, so that a mistake here is reported within a second."""

from specbench.errors import InputError, suggest_choices
from specbench.setup.instantiate import instantiate
from specbench.setup.settings import Settings
from tasks.question import TASK_OF_CATEGORY, Question, subsample
from tasks.suite import Suite

DEFAULT = frozenset(TASK_OF_CATEGORY.values())  # the tasks of every command's config: they mean all that the suite has


def open_suite(settings: Settings) -> Suite:
    """Return the suite. Raises InputError if its YAML builds no suite, or its data is bad."""
    return instantiate(settings.suite, Suite, "suite")


def check_tasks(settings: Settings) -> None:
    """Raise InputError for a task that the suite does not have."""
    select_questions(settings, open_suite(settings), None)


def select_questions(settings: Settings, suite: Suite, limit: int | None) -> list[Question]:
    """Return the suite's questions of the chosen tasks, by default of all, at most `limit` of each.

    Raises InputError if there are none, and for a chosen task without a question.
    """
    questions = suite.questions()
    has = list(dict.fromkeys(question.task for question in questions))
    tasks = has if set(settings.tasks) == DEFAULT else settings.tasks
    missing = [task for task in tasks if task not in has]
    if missing or not has:
        raise _refuse_tasks(missing or settings.tasks, suite.name, has)
    return subsample([question for question in questions if question.task in tasks], limit, settings.seed)


def _refuse_tasks(missing: list[str], suite: str, has: list[str]) -> InputError:
    choices = suggest_choices(missing[0], has) or "none at all"
    if has and missing[0] not in DEFAULT:
        return InputError(f"task={missing[0]}: no such task; expected {choices}: those of suite {suite}")
    return InputError(f"suite {suite} has no questions of task {', '.join(missing)}; it has {choices}")
