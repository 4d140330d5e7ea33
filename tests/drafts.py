"""What a drafter proposes, step by step."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from specbench.decoding.drafter import Drafter


@contextmanager
def watch_drafts(drafter: Drafter) -> Iterator[list[list[int]]]:
    """Yield the drafted tokens of every step, of a drafter of chains and one sequence."""
    drafts: list[list[int]] = []
    propose = drafter.propose

    def watch(states: list[Any], budgets: list[int]) -> Any:
        trees = propose(states, budgets)
        drafts.append(trees[0].tokens.tolist()[1:])
        return trees

    drafter.propose = watch  # type: ignore[method-assign]
    try:
        yield drafts
    finally:
        drafter.propose = propose  # type: ignore[method-assign]


def generate_by_transformers(
    model: Any, generator: Any, prompt: torch.Tensor, **settings: Any
) -> tuple[list[int], list[list[int]]]:
    """Return the greedy answer and every draft. generator: the class of transformers that drafts."""
    drafts: list[list[int]] = []
    get_candidates = generator.get_candidates

    def watch(self: Any, ids: torch.Tensor, *args: Any, **named: Any) -> Any:
        found = get_candidates(self, ids, *args, **named)
        drafts.append(found[0][0, ids.shape[1] :].tolist())
        return found

    generator.get_candidates = watch
    try:
        out = model.generate(prompt[None], do_sample=False, pad_token_id=0, eos_token_id=model.config.vocab_size, **settings)
    finally:
        generator.get_candidates = get_candidates
    return out[0, len(prompt) :].tolist(), drafts[1:]
