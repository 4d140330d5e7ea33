"""A cheat: it keeps its first answer to each prompt, and drafts it when the prompt returns, though it declares no memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from specbench.decoding.drafter import Drafter
from specbench.decoding.tree import DraftTree

LONGEST = 20


@dataclass
class _Sequence:
    """known: the earlier answer; written: the present one, its last token the root."""

    known: list[int]
    written: list[int] = field(default_factory=list)


class Remembers(Drafter):
    """everywhere: it shares its memory with all drafters of its class."""

    shared: ClassVar[dict[tuple[int, ...], list[int]]] = {}

    def __init__(self, everywhere: bool = False) -> None:
        super().__init__()
        self.answers = self.shared if everywhere else {}

    def start(self, prompt: list[int], *_: Any) -> _Sequence:
        known = list(self.answers.get(tuple(prompt[:-1]), []))
        written = self.answers.setdefault(tuple(prompt[:-1]), []) if not known else []
        written.append(prompt[-1])
        return _Sequence(known, written)

    def draft(self, state: _Sequence, budget: int) -> DraftTree:
        so_far = len(state.written)
        follows = state.known[:so_far] == state.written
        return DraftTree.chain(self.to_tensor([state.written[-1], *state.known[so_far:][: min(budget, LONGEST) * follows]]))

    def observe(self, state: _Sequence, tree: DraftTree, out: Any, verified: Any) -> None:
        state.written += verified.tokens
