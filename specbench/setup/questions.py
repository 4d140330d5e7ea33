"""The suite that settings name, and its questions. Imports no torch, so that a mistake here is reported within a second."""

from collections.abc import Mapping, Sequence

from specbench.errors import InputError, abbreviate, show_value, suggest_choices, suggest_nearest
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
    """Return the suite's questions of the chosen tasks, categories and ids, by default all, at most `limit` of each task.

    Raises InputError if there are none, and for a chosen task, category or id of which no question is left.
    """
    questions = suite.questions()
    has = list(dict.fromkeys(question.task for question in questions))
    tasks = has if set(settings.tasks) == DEFAULT else settings.tasks
    missing = [task for task in tasks if task not in has]
    if missing or not has:
        raise _refuse_tasks(missing or settings.tasks, suite.name, has)
    ids = None if settings.question is None else [str(one) for one in settings.question]
    choices: dict[str, list[str] | None] = {"category": settings.category, "question": ids}
    for name, chosen in choices.items():
        _check_known(name, chosen or [], questions, suite.name)
    choices["task"] = None if tasks is has else tasks
    kept = [question for question in questions if all(_is_chosen(question, *choice) for choice in choices.items())]
    for name, chosen in choices.items():
        _check_kept(name, chosen or [], kept, choices)
    return subsample(kept, limit, settings.seed)


def _get_name(question: Question, setting: str) -> str:
    """Return what a setting calls a question by: its id, its category or its task."""
    return {"question": question.id, "category": question.category, "task": question.task}[setting]


def _is_chosen(question: Question, setting: str, chosen: Sequence[str] | None) -> bool:
    return chosen is None or _get_name(question, setting) in chosen


def _check_known(setting: str, chosen: Sequence[str], questions: Sequence[Question], suite: str) -> None:
    """Raise InputError, with the nearest ones, for an id or a category that the suite does not have."""
    known = list(dict.fromkeys(_get_name(question, setting) for question in questions))
    if unknown := next((name for name in chosen if name not in known), None):
        nearest = suggest_nearest(unknown, known) or f"; it has {len(known)}, such as {known[0]} and {known[-1]}"
        raise InputError(f"{setting}={show_value(unknown)}: suite {suite} has no such {setting}{nearest}")


def _check_kept(
    setting: str, chosen: Sequence[str], kept: Sequence[Question], choices: Mapping[str, Sequence[str] | None]
) -> None:
    """Raise InputError for a name that the other settings leave no question of."""
    left = {_get_name(question, setting) for question in kept}
    if lost := next((name for name in chosen if name not in left), None):
        others = " ".join(f"{name}=[{abbreviate(list(names))}]" for name, names in choices.items() if names and name != setting)
        raise InputError(f"{setting}={show_value(lost)}: {others} leaves no question of it; expected choices that go together")


def _refuse_tasks(missing: list[str], suite: str, has: list[str]) -> InputError:
    choices = suggest_choices(missing[0], has) or "none at all"
    if has and missing[0] not in DEFAULT:
        return InputError(f"task={missing[0]}: no such task; expected {choices}: those of suite {suite}")
    return InputError(f"suite {suite} has no questions of task {', '.join(missing)}; it has {choices}")
