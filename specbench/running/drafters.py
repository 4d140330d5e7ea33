"""Build a run's methods, and check that they go with its target: first those that need no device, so that mistakes come early."""

from collections.abc import Mapping

from transformers import PreTrainedTokenizerBase

from specbench.decoding.drafter import Drafter
from specbench.running.checks import check_draft_tokenizer, check_drafters, check_stoppable
from specbench.setup import objects
from specbench.setup.settings import RunSettings


def prepare_drafters(settings: RunSettings, tokenizer: PreTrainedTokenizerBase) -> dict[str, Drafter]:
    """Return the methods that need no device yet, once all is checked that needs none. Raises InputError."""
    drafting = [label for label, node in settings.method.items() if objects.drafts_with_model(node)]
    objects.check_models(settings.target, draft=bool(drafting))
    if any(not objects.translates_tokens(settings.method[label]) for label in drafting):
        check_draft_tokenizer(settings.target, tokenizer)
    drafters = objects.instantiate_methods({label: node for label, node in settings.method.items() if label not in drafting})
    check_drafters(drafters, settings.target, tokenizer)
    check_stoppable(drafters, settings.budget)
    return drafters


def complete_drafters(
    settings: RunSettings, prepared: Mapping[str, Drafter], tokenizer: PreTrainedTokenizerBase
) -> dict[str, Drafter]:
    """Return all methods in their order: those that load a model of their own join the others."""
    others = objects.instantiate_methods({label: node for label, node in settings.method.items() if label not in prepared})
    check_drafters(others, settings.target, tokenizer)
    check_stoppable(others, settings.budget)
    drafters = {**prepared, **others}
    return {label: drafters[label] for label in settings.method}
