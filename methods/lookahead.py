"""Lookahead decoding (Fu et al. 2024): the target's guesses at several positions ahead form n-grams, which are then drafted.

Every forward carries a window of `level` - 1 rows as scratch nodes. Row 0 is text after the root; the token in column j of row l
was the target's guess after column j of row l - 1. A column, read downwards, and the target's guess after it form an n-gram of
`level` tokens. N-grams enter a pool, and those that begin with the root are drafted next.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from specbench.bounds import Depth, Seed, Within
from specbench.decoding.drafter import Drafter, SequenceContext
from specbench.decoding.language_model import LanguageModel, TargetOutput
from specbench.decoding.tree import DraftTree, TreeShape
from specbench.decoding.verify import Verification

TreePath = tuple[int, ...]


class Pool:
    """N-grams of `level` tokens, indexed by their first token: the `guesses` latest of each, the oldest first."""

    def __init__(self, level: int, guesses: int) -> None:
        self.level, self.guesses = level, guesses
        self._grams: dict[int, list[TreePath]] = {}

    def add(self, token: int, continuation: TreePath) -> None:
        """Add an n-gram; one already in the pool becomes the latest."""
        grams = self._grams.setdefault(token, [])
        if continuation in grams:
            grams.remove(continuation)
        elif len(grams) == self.guesses:
            del grams[0]
        grams.append(continuation)

    def add_text(self, tokens: list[int]) -> None:
        for start in range(len(tokens) - self.level + 1):
            self.add(tokens[start], tuple(tokens[start + 1 : start + self.level]))

    def get_guesses(self, token: int) -> list[TreePath]:
        return self._grams.get(token, [])


class Layout(NamedTuple):
    """The tree of given row lengths and number of guesses."""

    shape: TreeShape
    order: list[int]  # (N,) index of each node's token in root, rows, guesses
    last: Tensor  # nodes of the last row


@dataclass
class LookaheadState:
    tokens: list[int]  # the last committed ones, the root last
    place: int  # the root's position
    rows: list[list[int]]  # the filled rows; once there are several, the first is one token shorter than the others
    pool: Pool
    layout: Layout | None = None  # of the draft in flight


class Lookahead(Drafter):
    """level: tokens per n-gram (N). window: width of the window (W). guesses: most n-grams drafted at once (G).

    text_pool: n-grams of prompt and answer enter the pool, too. whole: the last token of a guess may be accepted, unlike in the
    authors' code. prefill_row: read the first row after the prompt in an extra forward before the first step, as the authors do
    in their prefill. seed: for drawing the first row's tokens from the prompt.
    """

    def __init__(
        self,
        level: Annotated[int, Within(3, 32)],
        window: Depth,
        guesses: Depth,
        text_pool: bool,
        whole: bool,
        prefill_row: bool,
        seed: Seed,
    ) -> None:
        self.level, self.window, self.guesses = level, window, guesses
        self.text_pool, self.whole, self.prefill_row, self.seed = text_pool, whole, prefill_row, seed
        self.nodes = 1 + (level - 1) * (window + level - 2) + guesses * (level - 1)
        self.reach = window + level - 2  # positions after the root that the window covers

    def bind(self, target: LanguageModel) -> None:
        super().bind(target)
        self._get_layout = cache(self._build_layout)

    def start(self, prompt: list[int], out: TargetOutput, context: SequenceContext) -> LookaheadState:
        draw = random.Random(self.seed)
        row = [draw.choice(prompt[:-1]) for _ in range(self.window + self.level - 3)]
        state = LookaheadState(prompt[-self.level :], len(prompt) - 1, [row], Pool(self.level, self.guesses))
        if self.text_pool:
            state.pool.add_text(prompt)
        if self.prefill_row and len(prompt) + len(row) <= self.target.context:
            context.work.forwards += 1
            (read,) = self.target.forward(context.past, [DraftTree.chain(self.to_tensor(row))])
            self._shift(state, read.logits.max(dim=-1).indices.tolist())
        return state

    def draft(self, state: LookaheadState, budget: int) -> DraftTree:
        root, state.layout = state.tokens[-1], None
        if not budget or state.place + self.reach >= self.target.context:
            return DraftTree.chain(torch.tensor([root]))
        guesses = [guess[:budget] for guess in state.pool.get_guesses(root)]
        state.layout = self._get_layout(tuple(map(len, state.rows)), len(guesses), min(budget, self.level - 1))
        tokens = [root, *(token for row in [*state.rows, *guesses] for token in row)]
        return state.layout.shape.build_tree(torch.tensor([tokens[place] for place in state.layout.order]))

    def update(
        self, states: list[LookaheadState], trees: list[DraftTree], outs: list[TargetOutput], verified: list[Verification]
    ) -> None:
        guesses = {
            row: out.logits[state.layout.last].max(dim=-1).indices
            for row, (state, tree, out) in enumerate(zip(states, trees, outs, strict=True))
            if state.layout is not None and tree.shape is state.layout.shape  # the tree is this drafter's
        }
        numbers = iter(torch.cat(list(guesses.values())).tolist() if guesses else ())  # one copy for all windows
        for row, guessed in guesses.items():
            self._shift(states[row], list(islice(numbers, len(guessed))))
        for state, choice in zip(states, verified, strict=True):
            self._extend(state, choice)

    def _extend(self, state: LookaheadState, verified: Verification) -> None:
        state.place += len(verified.tokens)
        known = state.tokens + verified.tokens
        if self.text_pool:
            state.pool.add_text(known[-(self.level - 1 + len(verified.tokens)) :])
        state.tokens = known[-self.level :]

    def _shift(self, state: LookaheadState, new: list[int]) -> None:
        """new: the target's guesses after the last filled row. Add it as a row, or move the full window on by one position."""
        rows = state.rows
        if len(rows) == self.level - 1:
            heads = [state.tokens[-1], *rows[0]]
            for head, *column in zip(heads, *rows[1:], new, strict=True):
                state.pool.add(head, tuple(column))
            state.rows = [rows[1][1:], *rows[2:], new]
        else:
            state.rows = [row[1:] for row in rows] + [new[1:] if len(rows) > 1 else new]

    def _build_layout(self, lengths: tuple[int, ...], guesses: int, depth: int) -> Layout:
        window = list(_iter_window(lengths))
        drafts = [(len(lengths) + guess, *[0] * length) for guess in range(guesses) for length in range(depth)]
        excluded = [] if self.whole else [path for path in drafts if len(path) == self.level - 1]
        shape = TreeShape([*window, *drafts], self.target.device, scratch={*window, *excluded})
        place = {path: i for i, path in enumerate([(), *window, *drafts])}
        node = {path: i for i, path in enumerate(shape.paths, start=1)}
        order = [0, *(place[path] for path in shape.paths)]
        return Layout(shape, order, self.to_tensor([node[path] for path in window[-lengths[-1] :]]))


def _iter_window(lengths: tuple[int, ...]) -> Iterator[TreePath]:
    """Yield the paths of the rows' nodes: row 0 is a chain after the root; column j hangs below its node j (0: the root)."""
    chain = [(0,) * depth for depth in range(lengths[0] + 1)]
    yield from chain[1:]
    for row, length in enumerate(lengths[1:]):
        yield from ((*chain[column], 1, *[0] * row) for column in range(length))
