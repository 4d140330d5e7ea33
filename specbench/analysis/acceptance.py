"""Mean accepted tokens and acceptance rates by every convention in use, from the same steps.

A step drafts a chain or tree of some depth, `accepted` of it is kept, and `committed` tokens enter the text: accepted + 1, or as
many as accepted where the last of those ends the text. Conventions differ in which steps count, how turns weigh, and whether
prefill's token does. `micro` is what Spec-Bench's speed.py makes of an export, and EAGLE's τ. vLLM's own counters also hold what
it accepts behind a stop token, and it drafts past the limit; neither is in a record, so its figures differ in a turn's last step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from specbench.records.trial import Trial


@dataclass(frozen=True)
class Steps:
    """Of one turn, per step: depth of the deepest draft, draft nodes, accepted tokens, committed tokens."""

    depth: list[int]
    drafted: list[int]
    accepted: list[int]
    committed: list[int]


def collect_steps(trials: Sequence[Trial]) -> list[Steps]:
    """Of the turns that have steps: finished ones of an engine that can see them."""
    found = []
    for trial in trials:
        if not trial.failed and trial.committed and trial.depth is not None:
            assert trial.drafted is not None and trial.accepted is not None
            found.append(Steps(trial.depth, trial.drafted, trial.accepted, trial.committed))
    return found


def micro(turns: Sequence[Steps], prefill: bool = False) -> float:
    """Committed tokens per step over all turns together; with `prefill`, its token and its forward count as a step."""
    extra = len(turns) * prefill
    steps = sum(len(turn.committed) for turn in turns) + extra
    return (sum(sum(turn.committed) for turn in turns) + extra) / steps if steps else float("nan")


def macro(turns: Sequence[Steps], prefill: bool = False) -> float:
    """Mean over turns of each turn's own."""
    return float(np.mean([micro([turn], prefill) for turn in turns])) if turns else float("nan")


def rate(turns: Sequence[Steps]) -> float:
    """Accepted tokens per draft node."""
    return _share(sum(sum(turn.accepted) for turn in turns), sum(sum(turn.drafted) for turn in turns))


@dataclass(frozen=True)
class Position:
    """Counts of steps at draft position k, from 1: all; those that draft so deep; accept all before it; that accept it."""

    k: int
    steps: int
    offered: int
    reached: int
    accepted: int

    @property
    def joint(self) -> float:
        """Of all steps; 1 + the sum over k is mean accepted tokens where nothing is cut off."""
        return _share(self.accepted, self.steps)

    @property
    def conditional(self) -> float:
        return _share(self.accepted, self.reached)


def positions(turns: Sequence[Steps]) -> list[Position]:
    depth, accepted = _flatten(turns)
    found = []
    for k in range(1, 1 + int(depth.max(initial=0))):
        offered = depth >= k
        reached = offered & (accepted >= k - 1)
        found.append(Position(k, len(depth), int(offered.sum()), int(reached.sum()), int((accepted >= k).sum())))
    return found


@dataclass(frozen=True)
class VllmCounters:
    """vLLM (vllm:spec_decode_num_*): counters over steps that draft; of a tree, all its nodes are draft tokens."""

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
    depth, accepted = _flatten(turns)
    tokens = sum(sum(turn.drafted) for turn in turns)
    return VllmCounters(int((depth > 0).sum()), tokens, int(accepted.sum()), [place.accepted for place in positions(turns)])


@dataclass(frozen=True)
class SGLangCounters:
    """SGLang's meta_info, over requests: prefill's token is one of the completion tokens, but no verification."""

    completion_tokens: int
    verifications: int
    proposed_drafts: int  # draft nodes; a chain's block size times verifications
    correct_drafts: int

    @property
    def accept_length(self) -> float:
        return _share(self.completion_tokens, self.verifications)

    @property
    def accept_rate(self) -> float:
        return _share(self.correct_drafts, self.proposed_drafts)


def count_sglang(turns: Sequence[Steps]) -> SGLangCounters:
    depth, accepted = _flatten(turns)
    completed = len(turns) + sum(sum(turn.committed) for turn in turns)
    return SGLangCounters(completed, len(depth), sum(sum(turn.drafted) for turn in turns), int(accepted.sum()))


def compute_speed_bench(turns: Sequence[Steps]) -> float:
    """SPEED-Bench's Average_AL: mean over requests of tokens per chunk, the first chunk being prefill's token."""
    return macro(turns, prefill=True)


def _flatten(turns: Sequence[Steps]) -> tuple[np.ndarray, np.ndarray]:
    """(S,) int of all turns' steps: depths, and accepted tokens."""
    depth = np.array([value for turn in turns for value in turn.depth], dtype=int)
    return depth, np.array([value for turn in turns for value in turn.accepted], dtype=int)


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")
