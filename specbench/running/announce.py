"""Say what a run needs before anything is loaded, and refuse what cannot fit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.table import Table
from transformers import PreTrainedTokenizerBase

from specbench.machine.devices import get_free_memory
from specbench.models.chat import Chat, render_prompt
from specbench.records.run_directory import RunDirectory
from specbench.running.minutes import estimate_minutes
from specbench.running.needs import Minutes, RunNeed, build_need_table, check_need, format_need, format_time
from specbench.running.rehearse import rehearse_run
from specbench.running.schedule import Arm
from specbench.setup.settings import RunSettings
from tasks.question import Question


@dataclass(frozen=True)
class Announcement:
    """need: with what the baseline's check takes; free: bytes of the device now."""

    need: RunNeed
    minutes: Minutes
    free: int
    max_new_tokens: int
    spread: bool  # over several devices, whose free memory is not known

    def format_lines(self, left: float = 1.0, stopping: str = "") -> list[str]:
        """Return what a run says at its start. left: the share that is not on disk yet; stopping: what Ctrl-C does."""
        return [*format_need(self.need, self.free), *format_time(left * self.minutes.total, stopping)]

    def build_table(self) -> Table:
        return build_need_table(self.need, self.minutes, self.free)

    def check(self) -> None:
        """Raise InputError, with a setting that would fit, for what does not fit."""
        if not self.spread:
            check_need(self.need, self.free, self.max_new_tokens)


def announce(
    settings: RunSettings, questions: list[Question], labels: list[str], tokenizer: PreTrainedTokenizerBase, chat: Chat
) -> Announcement | None:
    """Return what a run of these labels needs; None for a target that cannot be rehearsed, of which nothing is claimed."""
    prompts = list(_iter_prompts(questions, chat, tokenizer, settings.sampling.max_new_tokens))
    try:
        need = rehearse_run(settings, max(prompts))
    except Exception:  # of any type: another architecture's own code; what is wrong with it is said when it is loaded
        return None
    free = get_free_memory(need.device)
    spread = settings.target.device_map is not None
    need = need.limit(free, settings.check_baseline, plain=not spread)
    tokens = settings.sampling.max_new_tokens
    minutes = estimate_minutes(need, prompts, tokens, labels, settings.repeats, settings.batch)
    return Announcement(need, minutes, free, tokens, spread)


def count_missing(run: RunDirectory, questions: Sequence[Question], arms: Sequence[Arm], repeats: int) -> float:
    """Return the share of a run's turns that are not on disk."""
    wanted, labels = {question.id for question in questions}, {arm.label for arm in arms}
    total = sum(len(question.turns) for question in questions) * len(labels) * repeats
    done = run.read_attempts() if run.is_run() else []
    here = {trial.key for trial in done if trial.method in labels and trial.question_id in wanted and trial.repeat < repeats}
    return 1 - len(here) / total


def bound_prompt(questions: Iterable[Question], chat: Chat, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int) -> int:
    """Return an upper bound of prompt tokens: whole conversations in which every answer has its maximum length."""
    return max(_iter_prompts(questions, chat, tokenizer, max_new_tokens), default=0)


def _iter_prompts(
    questions: Iterable[Question], chat: Chat, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int
) -> Iterator[int]:
    """Yield the most tokens that each turn's prompt can have."""
    for question in questions:
        before = 0
        for turn in question.turns:
            before += len(render_prompt(chat, [(turn, None)], tokenizer))
            yield before
            before += max_new_tokens
