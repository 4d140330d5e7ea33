"""Check that methods, questions and target go together, before a run spends time on them."""

from collections.abc import Mapping

from transformers import PreTrainedTokenizerBase

from specbench.datastore.leakage import check_tokenizers
from specbench.decoding.drafter import Drafter
from specbench.decoding.language_model import check_token
from specbench.drafters.checkpoints import BUILT_IN, OF_TARGET, find_folder
from specbench.drafters.network_drafter import NetworkDrafter, require_checkpoint
from specbench.drafters.skip_sets import check_shape, find_skip_set
from specbench.drafters.skipping_drafter import SkippingDrafter
from specbench.errors import InputError, abbreviate, name_place, show_value
from specbench.machine.devices import pick_device, pick_dtype
from specbench.models.chat import render_prompt
from specbench.models.load import load_tokenizer
from specbench.models.target import Target
from specbench.running.schedule import form_groups
from specbench.setup.settings import TargetSettings
from tasks.question import Question

PLAIN = NetworkDrafter.__mro__  # classes that every method with weights of its own has
REMEDY = "only methods such as sps_tli take a draft model with another tokenizer"
PROBE = "The 7 naïve cats wrote:\n\tdef f(x): return x**2\n日本 — Да, ¿por qué?"


def check_batch(questions: list[Question], batch: int) -> None:
    """Raise InputError for a task whose questions make no whole group: its speedup at this batch could not be known."""
    sizes: dict[str, int] = {}
    for group in form_groups(questions, batch):
        task = group.questions[0].task
        sizes[task] = max(sizes.get(task, 0), len(group.questions))
    for task, size in sizes.items():
        if size < batch:
            raise InputError(
                f"batch={batch}: task {task} has {size} questions with the same number of turns; expected at most batch={size}"
            )


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


def check_stoppable(drafters: Mapping[str, Drafter], budget: str | None) -> None:
    """Raise InputError for a warm method in a run that may stop between questions: its repeat counts as a whole or not at all."""
    if budget and (warm := [label for label, drafter in drafters.items() if drafter.warm]):
        raise InputError(
            f"budget={budget}: {abbreviate(warm)} keeps what it has seen, so only its whole repeats count; expected budget=null"
        )


def check_draft_tokenizer(target: TargetSettings, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise InputError for a draft model whose own tokenizer gives other tokens than the target's: its drafts would be noise."""
    draft = target.draft or {}
    path = draft.get("path")
    if path is None or draft.get("weights", target.weights) == "random":
        return
    try:
        own = load_tokenizer(path, draft.get("revision"), draft.get("trust_remote_code", False))
    except InputError:  # it has none of its own
        return
    given, expected = (one.encode(PROBE, add_special_tokens=False) for one in (own, tokenizer))
    if given != expected:
        raise InputError(f"target.draft.path={path}: its tokenizer gives other tokens than the target's; {REMEDY}")
    if (number := _find_other_token(own, tokenizer)) is not None:
        texts = " and ".join(show_value(one.convert_ids_to_tokens(number)) for one in (own, tokenizer))
        raise InputError(f"target.draft.path={path}: token {number} is {texts} in its tokenizer and the target's; {REMEDY}")


def _find_other_token(own: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> int | None:
    """Return the first id whose token differs, special ones aside: models of one family name their reserved tokens anew."""
    ours, theirs = ({number: token for token, number in one.get_vocab().items()} for one in (own, other))
    special = {*own.all_special_ids, *other.all_special_ids, *own.added_tokens_decoder, *other.added_tokens_decoder}
    return next((number for number in sorted({*ours} & {*theirs} - special) if ours[number] != theirs[number]), None)


def check_checkpoint(drafter: Drafter, target: TargetSettings, label: str) -> None:
    """Raise InputError for a folder or file that does not exist, and for a dtype that the device lacks."""
    with name_place(f"method.{label}: "):
        if isinstance(drafter, SkippingDrafter):
            find_skip_set(drafter.checkpoint)
        if isinstance(drafter, NetworkDrafter):
            if (checkpoint := require_checkpoint(drafter.checkpoint)) not in BUILT_IN:
                find_folder(checkpoint)
            elif checkpoint == OF_TARGET and not _reads_target(drafter):
                drafter.network_class.read_target()  # refuses, before the target is loaded
            pick_dtype(drafter.dtype, pick_device(target.device))


def _reads_target(drafter: NetworkDrafter) -> bool:
    """Whether the class of its network depends on the target, as where weights among the target's own are read."""
    return "get_network_class" in {name for kind in type(drafter).__mro__ if kind not in PLAIN for name in vars(kind)}


def check_prompts(questions: list[Question], target: Target) -> None:
    """Raise InputError for another model's tokenizer, and for a task without any first prompt that fits the context.

    Also for an end of answers that the target does not have, and for a chat template that fails at a second turn, if a question
    has one.
    """
    for token in target.model.eos_ids:
        check_token(token, "the target's eos_token_id", target.model.vocabulary)
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
