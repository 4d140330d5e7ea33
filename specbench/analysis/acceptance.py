"""Mean accepted tokens and acceptance rates by every convention in use, from the same steps.

A step drafts a chain or a tree and accepts `accepted` of its tokens. `committed` tokens enter the text: accepted + 1, or just
accepted if the last of them ends the text. Conventions differ in which steps count, how turns are weighted, and whether the
token of prefill counts. `micro` is what Spec-Bench's speed.py computes from an export, and EAGLE's τ. vLLM's own counters include
tokens accepted after a stop token and drafts past the length limit. A record holds neither, so vLLM's figures differ in a turn's
last step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from specbench.records.trial import Trial


@dataclass(frozen=True)
class Steps:
    """The steps of one turn: for each, the depth of the deepest draft, draft nodes, accepted tokens and committed tokens."""

    depth: list[int]
    drafted: list[int]
    accepted: list[int]
    committed: list[int]


def collect_steps(trials: Sequence[Trial]) -> list[Steps]:
    """Return the steps of every finished turn of an engine that reports steps."""
    turns = []
    for trial in trials:
        if not trial.failed and trial.committed and trial.depth is not None:
            assert trial.drafted is not None and trial.accepted is not None
            turns.append(Steps(trial.depth, trial.drafted, trial.accepted, trial.committed))
    return turns


def micro(turns: Sequence[Steps], prefill: bool = False) -> float:
    """Return committed tokens per step over all turns; with `prefill`, prefill and its token count as one more step per turn."""
    extra = len(turns) * prefill
    steps = sum(len(turn.committed) for turn in turns) + extra
    return (sum(sum(turn.committed) for turn in turns) + extra) / steps if steps else float("nan")


def macro(turns: Sequence[Steps], prefill: bool = False) -> float:
    """Return the mean over turns of each turn's own `micro`; with `prefill`, SPEED-Bench's Average_AL."""
    return float(np.mean([micro([turn], prefill) for turn in turns])) if turns else float("nan")


def rate(turns: Sequence[Steps]) -> float:
    """Return accepted tokens per draft node."""
    return _share(sum(sum(turn.accepted) for turn in turns), sum(sum(turn.drafted) for turn in turns))


def depth_rate(turns: Sequence[Steps]) -> float:
    """Return accepted tokens per depth offered: the tables' acceptance rate."""
    return _share(sum(sum(turn.accepted) for turn in turns), sum(sum(turn.depth) for turn in turns))


@dataclass(frozen=True)
class Position:
    """Counts at draft position k, from 1.

    offered: steps that draft to that depth; reached: those that also accept all before k.
    """

    k: int
    steps: int
    offered: int
    reached: int
    accepted: int

    @property
    def joint(self) -> float:
        """Share of all steps that accept it; 1 + the sum over k is the mean accepted tokens of turns that are not cut off."""
        return _share(self.accepted, self.steps)

    @property
    def conditional(self) -> float:
        """Share of the steps that reach it."""
        return _share(self.accepted, self.reached)


def positions(turns: Sequence[Steps]) -> list[Position]:
    """Return the counts at every draft position of the turns."""
    depth, accepted = _flatten(turns)
    places = []
    for k in range(1, 1 + int(depth.max(initial=0))):
        offered = depth >= k
        reached = offered & (accepted >= k - 1)
        places.append(Position(k, len(depth), int(offered.sum()), int(reached.sum()), int((accepted >= k).sum())))
    return places


@dataclass(frozen=True)
class VllmCounters:
    """vLLM's counters (vllm:spec_decode_num_*) over steps that draft; every node of a tree is a draft token."""

    drafts: int
    draft_tokens: int
    accepted_tokens: int
    accepted_per_position: list[int]

    @property
    def acceptance_length(self) -> float:
        return 1 + self.accepted_tokens / self.drafts if self.drafts else float("nan")

    @property
    def acceptance_rate(self) -> float:
        return _share(self.accepted_tokens, self.draft_tokens)

    @property
    def per_position(self) -> list[float]:
        return [_share(count, self.drafts) for count in self.accepted_per_position]


def count_vllm(turns: Sequence[Steps]) -> VllmCounters:
    """Return the counters that vLLM would report."""
    depth, accepted = _flatten(turns)
    tokens = sum(sum(turn.drafted) for turn in turns)
    return VllmCounters(int((depth > 0).sum()), tokens, int(accepted.sum()), [place.accepted for place in positions(turns)])


@dataclass(frozen=True)
class SGLangCounters:
    """SGLang's meta_info over requests: the token of prefill is a completion token, but prefill is not a verification."""

    completion_tokens: int
    verifications: int
    proposed_drafts: int  # draft nodes; for chains, block size times verifications
    correct_drafts: int

    @property
    def accept_length(self) -> float:
        return _share(self.completion_tokens, self.verifications)

    @property
    def accept_rate(self) -> float:
        return _share(self.correct_drafts, self.proposed_drafts)


def count_sglang(turns: Sequence[Steps]) -> SGLangCounters:
    """Return the counters that SGLang would report."""
    depth, accepted = _flatten(turns)
    completed = len(turns) + sum(sum(turn.committed) for turn in turns)
    return SGLangCounters(completed, len(depth), sum(sum(turn.drafted) for turn in turns), int(accepted.sum()))


def _flatten(turns: Sequence[Steps]) -> tuple[np.ndarray, np.ndarray]:
    """Return the depths and the accepted tokens of all steps, each of shape (S,)."""
    depth = np.array([value for turn in turns for value in turn.depth], dtype=int)
    return depth, np.array([value for turn in turns for value in turn.accepted], dtype=int)


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")
