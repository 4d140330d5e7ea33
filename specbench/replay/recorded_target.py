"""Replay: the exact acceptance of drafters that read only tokens, on recorded answers, without a model.

At temperature 0 (and above it, for drafts that are not drawn) acceptance follows from the ids of prompt and answer: a draft token
is accepted where it is the answer's next one. The decode loop is the one that times methods. Its target here is a recording,
certain of the next token after each node that follows the answer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from specbench.decoding.drafter import Drafter, SequenceContext
from specbench.decoding.language_model import LanguageModel, TargetOutput
from specbench.decoding.loop import Generation, generate
from specbench.decoding.sampling import Sampling
from specbench.decoding.tree import DraftTree
from specbench.decoding.verify import GREEDY, Verification, Verifier
from specbench.errors import InputError, format_error
from specbench.exchange.ids import LARGEST, RecordedAnswer
from specbench.records.trial import PER_STEP, Trial

ENDLESS = 2**31 - 1
TOKENS_ALONE = "it reads what the target computes, but a recording holds only tokens"
NOTHING = -1  # a token that no drafter drafts
MEASURED = (
    "prefill_s", "decode_s", "draft_s", "verify_s", "retokenised", "peak_memory_bytes", "energy_j", "throttled", "began_s",
    "client_first_s", "client_last_s", "client", "sums",
)  # fmt: skip


class CertainLogits:
    """Replaces logits (N, V) by the token (N,) that each row is certain of: all that greedy verification reads."""

    device = torch.device("cpu")

    def __init__(self, tokens: Tensor) -> None:
        self.tokens = tokens
        self.shape = (*tokens.shape, 1)

    def __getitem__(self, row: int) -> CertainLogits:
        return CertainLogits(self.tokens[row])

    def max(self, dim: int) -> tuple[Tensor, Tensor]:
        """Return the values, which are finite, and the tokens."""
        return torch.ones_like(self.tokens, dtype=torch.float32), self.tokens


class UnseenTensor:
    """Replaces tensors of the target; refuses to be read."""

    def _refuse(self, *_: Any) -> Any:
        raise InputError(TOKENS_ALONE)

    __getattr__ = __getitem__ = __len__ = __iter__ = _refuse


class _PositionStore:
    """Replaces a KV store: the position of each sequence in its answer."""

    capacity = ENDLESS

    def __init__(self, rows: int) -> None:
        self.batch, self.lengths = rows, [0] * rows

    def clear(self, rows: int | None = None) -> None:
        self.lengths = [0] * (self.batch if rows is None else rows)

    def retain(self, places: list[int]) -> None:
        self.lengths = [self.lengths[place] for place in places]

    def keep(self, row: int, path: Sequence[int], nodes: Tensor | None = None) -> None:
        self.lengths[row] += len(path)

    def view_row(self, row: int) -> UnseenTensor:
        return UnseenTensor()


class RecordedTarget:
    """Replaces a LanguageModel: writes the recorded answer."""

    device = torch.device("cpu")
    context = ENDLESS

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary
        self.answer = [NOTHING]

    def create_store(self, capacity: int, batch: int = 1) -> _PositionStore:
        return _PositionStore(batch)

    def tap(self, layers: tuple[int, ...]) -> None:
        """Do nothing: a recording has no hidden states."""

    def prefill(self, store: _PositionStore, prompts: list[Tensor], all_logits: bool = False) -> list[TargetOutput]:
        return [_wrap_tokens(torch.tensor(self.answer[:1])) for _ in prompts]

    def forward(self, store: _PositionStore, trees: list[DraftTree]) -> list[TargetOutput]:
        pairs = zip(trees, store.lengths, strict=True)
        return [_wrap_tokens(_find_next_tokens(tree, self.answer[length:])) for tree, length in pairs]


def _wrap_tokens(tokens: Tensor) -> TargetOutput:
    return TargetOutput(cast(Tensor, CertainLogits(tokens)))


def _find_next_tokens(tree: DraftTree, left: list[int]) -> Tensor:
    """Return (N,): the recorded token after each node, or NOTHING. left: the rest of the answer, the root's token first."""
    tokens, parents, depths = tree.tokens.tolist(), tree.parents.tolist(), tree.depths.tolist()
    left = [*left, *[NOTHING] * (tree.depth + 2)]
    follows = [True] * len(tokens)
    for node in range(1, len(tokens)):
        follows[node] = follows[parents[node]] and tokens[node] == left[depths[node]]
    return torch.tensor([left[depth + 1] if on_path else NOTHING for depth, on_path in zip(depths, follows, strict=True)])


@dataclasses.dataclass(frozen=True)
class _EndAt:
    """Ends an answer at the length where a stop string ended the recorded one."""

    length: int

    def find_end(self, output: Sequence[int], checked: int, free: int) -> int | None:
        return self.length if len(output) >= self.length else None


class _TokenOnlyDrafter(Drafter):
    """A drafter that sees only tokens."""

    def __init__(self, drafter: Drafter) -> None:
        self.drafter = drafter

    def prepare(self, prompts: list[Tensor], samplings: list[Sampling], capacity: int) -> None:
        self.drafter.prepare(prompts, samplings, capacity)

    def verifier(self, sampling: Sampling) -> Verifier:
        return GREEDY

    def begin(self, prompts: list[list[int]], outs: list[TargetOutput], contexts: list[SequenceContext]) -> list[Any]:
        return self.drafter.begin(prompts, [_hide_output(out) for out in outs], contexts)

    def propose(self, states: list[Any], budgets: list[int]) -> list[DraftTree]:
        return self.drafter.propose(states, budgets)

    def update(self, states: list[Any], trees: list[DraftTree], outs: list[TargetOutput], verified: list[Verification]) -> None:
        self.drafter.update(states, trees, [_hide_output(out) for out in outs], verified)


def _hide_output(out: TargetOutput) -> TargetOutput:
    unseen: Any = UnseenTensor()
    return dataclasses.replace(out, logits=unseen, hidden=unseen)


def replay_answers(
    label: str, drafter: Drafter, answers: Sequence[RecordedAnswer], vocabulary: int = LARGEST
) -> list[Generation]:
    """Return steps, drafts and accepted tokens of the method for each answer; times mean nothing. Raises InputError."""
    target = RecordedTarget(vocabulary)
    try:
        drafter.bind(cast(LanguageModel, target))
    except AttributeError:  # it reads the weights or the config
        raise InputError(f"method {label} cannot be replayed: {TOKENS_ALONE}") from None
    drafter.reset()
    return [_replay_answer(label, _TokenOnlyDrafter(drafter), target, answer, i) for i, answer in enumerate(answers)]


def _replay_answer(label: str, drafter: Drafter, target: RecordedTarget, answer: RecordedAnswer, number: int) -> Generation:
    target.answer = answer.output
    # Nothing is drawn: the seed only tells answers apart.
    ending = _EndAt(len(answer.output)) if answer.ended else None
    sampling = Sampling(max_new_tokens=answer.limit, stop_token_ids=answer.stops, seed=number, ending=ending)
    try:
        (out,) = generate(cast(LanguageModel, target), drafter, [torch.tensor(answer.prompt)], sampling)
    except Exception as error:
        why = str(error) if isinstance(error, InputError) else format_error(error)
        raise InputError(f"method {label} cannot be replayed: {why}") from None
    if out.output_ids != answer.output:
        raise InputError(f"the replay of {label} ends after {len(out.output_ids)} of {len(answer.output)} tokens")
    return out


def replay_trials(label: str, drafter: Drafter, answers: Sequence[tuple[Trial, RecordedAnswer]]) -> list[Trial]:
    """Return the records of a replay: those of a run with counts and without times."""
    outs = replay_answers(label, drafter, [answer for _, answer in answers])
    return [_build_trial(label, trial, out) for (trial, _), out in zip(answers, outs, strict=True)]


def _build_trial(label: str, recorded: Trial, out: Generation) -> Trial:
    counts: dict[str, Any] = {"steps": out.steps, "target_forwards": out.steps + 1}
    absent: dict[str, Any] = dict.fromkeys(MEASURED)
    lists = {name: getattr(out, name) for name in PER_STEP}
    alone: dict[str, Any] = {"batch": 1, "group": None, "place": None, "attempt": 1, "arms": None, "disturbed": None}
    alone["concurrency"] = 1
    return dataclasses.replace(recorded, method=label, kind="replayed", order=0, **alone, **counts, **lists, **absent)
