"""What a drafter proposes, step by step."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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
