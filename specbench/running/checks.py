"""Check that methods, questions and target go together, before a run spends time on them."""

from collections.abc import Mapping

from transformers import PreTrainedTokenizerBase

from specbench.datastore.leakage import check_tokenizers
from specbench.decoding.drafter import Drafter
from specbench.drafters.checkpoints import RANDOM, find_folder
from specbench.drafters.network_drafter import NetworkDrafter, require_checkpoint
from specbench.drafters.skip_sets import check_shape, find_skip_set
from specbench.drafters.skipping_drafter import SkippingDrafter
from specbench.errors import InputError
from specbench.machine.devices import pick_device, pick_dtype
from specbench.models.chat import render_prompt
from specbench.models.target import Target
from specbench.setup.objects import name_place
from specbench.setup.settings import TargetSettings
from tasks.question import Question


def check_drafters(drafters: Mapping[str, Drafter], target: TargetSettings, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise InputError for a method that does not go with the target's tokenizer or shape. Needs no weights."""
    check_tokenizers(drafters, tokenizer)
    skipping = [
        label for label, drafter in drafters.items() if any(isinstance(part, SkippingDrafter) for part in drafter.iter_family())
    ]
    check_shape(skipping, target.shape, target.sizes)
    for label, drafter in drafters.items():
        for part in drafter.iter_family():
            check_checkpoint(part, target, label)


def check_checkpoint(drafter: Drafter, target: TargetSettings, label: str) -> None:
    """Raise InputError for a folder or file that does not exist, and for a dtype that the device lacks."""
    with name_place(f"method.{label}: "):
        if isinstance(drafter, SkippingDrafter):
            find_skip_set(drafter.checkpoint)
        if isinstance(drafter, NetworkDrafter):
            if (checkpoint := require_checkpoint(drafter.checkpoint)) != RANDOM:
                find_folder(checkpoint)
            pick_dtype(drafter.dtype, pick_device(target.device))


def check_prompts(questions: list[Question], target: Target) -> None:
    """Raise InputError for another model's tokenizer, and for a task without any first prompt that fits the context.

    Also for a chat template that fails at a second turn, if a question has one.
    """
    shortest: dict[str, int] = {}
    for question in questions:
        ids = target.render_first_prompt(question)
        if max(ids) >= target.model.vocabulary:
            raise InputError(
                f"the tokenizer gives id {max(ids)}, but {target.name} has a vocabulary of {target.model.vocabulary}"
            )
        shortest[question.task] = min(len(ids), shortest.get(question.task, len(ids)))
    if longer := next((question for question in questions if len(question.turns) > 1), None):
        render_prompt(target.chat, [(longer.turns[0], "Yes."), (longer.turns[1], None)], target.tokenizer)
    fitting = [task for task, length in shortest.items() if length < target.model.context]
    for task, length in shortest.items():
        if task not in fitting:
            reason = f"its shortest prompt has {length} tokens, the context of {target.name} {target.model.context}"
            raise InputError(f"task {task}: {reason}; tasks that fit: {', '.join(fitting) or 'none'}")
