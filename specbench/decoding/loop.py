"""The one decode loop: draft, one target forward, verify, commit.

Autoregressive decoding is the drafter that offers the root alone.
"""

from dataclasses import dataclass, field
from time import perf_counter
from typing import Literal

import torch
from torch import Tensor

from specbench.decoding.drafter import Drafter, SequenceContext
from specbench.decoding.kv_store import KVStore
from specbench.decoding.language_model import LanguageModel
from specbench.decoding.sampling import Sampling
from specbench.decoding.tree import DraftTree
from specbench.decoding.verify import Verification, Verifier
from specbench.machine.devices import synchronize


class CapacityError(Exception):
    """The prompt leaves no room for one new token in the model's context."""


@dataclass
class Generation:
    """What came out of one sequence and what it took. Lists have one entry per step; seconds are wall time."""

    output_ids: list[int] = field(default_factory=list)
    finish_reason: Literal["eos", "length", "capacity"] | None = None
    drafted: list[int] = field(default_factory=list)  # draft nodes, root and scratch not counted
    nodes: list[int] = field(default_factory=list)  # all rows of the target's forward
    depth: list[int] = field(default_factory=list)  # deepest draft
    accepted: list[int] = field(default_factory=list)
    committed: list[int] = field(default_factory=list)  # after the cut at end-of-sequence and length
    prefill_s: float = 0.0
    decode_s: float = 0.0
    draft_s: float | None = None  # profiled runs only
    verify_s: float | None = None
    draft_forwards: int = 0
    sees_steps: bool = True  # False: another engine's, which knows its tokens and total seconds alone

    @property
    def steps(self) -> int:
        return len(self.committed)


@dataclass
class _Sequence:
    generation: Generation
    limit: int  # new tokens that may come
    why: Literal["length", "capacity"]  # the reason to give when the limit is reached
    stops: frozenset[int]
    verifier: Verifier

    def commit(self, tokens: list[int]) -> int:
        """Append up to the first stop token or the limit; how many that was."""
        out = self.generation
        room = self.limit - len(out.output_ids)
        taken = tokens[:room]
        for i, token in enumerate(taken):
            if token in self.stops:
                taken, out.finish_reason = taken[: i + 1], "eos"
                break
        out.output_ids += taken
        if out.finish_reason is None and len(out.output_ids) >= self.limit:
            out.finish_reason = self.why
        return len(taken)

    @property
    def budget(self) -> int:
        """Deepest draft that can still be committed with a token behind it; finished sequences idle with the root alone."""
        return 0 if self.generation.finish_reason else self.limit - len(self.generation.output_ids) - 1


def _start_sequence(target: LanguageModel, drafter: Drafter, row: int, prompt: int, sampling: Sampling) -> _Sequence:
    room = target.context - prompt
    if room < 1:
        raise CapacityError(f"a prompt of {prompt} tokens does not fit a context of {target.context}")
    why: Literal["length", "capacity"] = "length" if room >= sampling.max_new_tokens else "capacity"
    limit = min(room, sampling.max_new_tokens)
    return _Sequence(Generation(), limit, why, frozenset(sampling.stop_token_ids), drafter.verifier(sampling, row))


class Clock:
    """Seconds spent drafting and in the target, when a run is profiled; synchronises the device to know."""

    def __init__(self, device: torch.device, on: bool) -> None:
        self.device, self.on, self.draft, self.verify = device, on, 0.0, 0.0

    def now(self) -> float:
        if self.on:
            synchronize(self.device)
        return perf_counter() if self.on else 0.0


def capacity(target: LanguageModel, drafter: Drafter, prompt: int, sampling: Sampling) -> int:
    """KV entries that decoding a prompt of so many tokens can need: prompt, answer and the largest branched tree."""
    return min(prompt + sampling.max_new_tokens, target.context) + drafter.nodes


@torch.inference_mode()
def generate(
    target: LanguageModel,
    drafter: Drafter,
    prompts: list[Tensor],
    sampling: Sampling,
    store: KVStore | None = None,
    profile: bool = False,
) -> list[Generation]:
    """Decode every prompt, (T,) int64 on the target's device each, with a drafter bound to the target.

    Raises CapacityError before the first forward.
    """
    sequences = [_start_sequence(target, drafter, row, len(prompt), sampling) for row, prompt in enumerate(prompts)]
    needed = max(capacity(target, drafter, len(prompt), sampling) for prompt in prompts)
    if store is None or store.capacity < needed or len(store.lengths) != len(prompts):
        store = target.create_store(needed, len(prompts))
    store.clear()
    drafter.prepare(prompts, sampling, store.capacity)
    drafter.draft_forwards = 0
    target.tap(drafter.taps)
    clock = Clock(target.device, profile)
    _decode(target, drafter, prompts, sequences, store, clock)
    for sequence in sequences:
        sequence.generation.draft_forwards = drafter.draft_forwards
        if profile:
            sequence.generation.draft_s, sequence.generation.verify_s = clock.draft, clock.verify
    return [sequence.generation for sequence in sequences]


def _decode(
    target: LanguageModel, drafter: Drafter, prompts: list[Tensor], sequences: list[_Sequence], store: KVStore, clock: Clock
) -> None:
    begun = perf_counter()
    outs = target.prefill(store, prompts, all_logits=drafter.prompt_logits)
    roots = [sequence.verifier.choose_first(out.logits[-1]) for sequence, out in zip(sequences, outs, strict=True)]
    for sequence, root in zip(sequences, roots, strict=True):
        sequence.commit([root])
    prefilled = perf_counter()
    if not all(sequence.generation.finish_reason for sequence in sequences):
        contexts = [SequenceContext(store.view_row(row), sequence.verifier) for row, sequence in enumerate(sequences)]
        begun_texts = [[*prompt.tolist(), root] for prompt, root in zip(prompts, roots, strict=True)]
        states = drafter.begin(begun_texts, outs, contexts)
        while not all(sequence.generation.finish_reason for sequence in sequences):
            _run_step(target, drafter, states, sequences, store, clock)
    ended = perf_counter()
    for sequence in sequences:
        sequence.generation.prefill_s, sequence.generation.decode_s = prefilled - begun, ended - prefilled


def _run_step(
    target: LanguageModel, drafter: Drafter, states: list, sequences: list[_Sequence], store: KVStore, clock: Clock
) -> None:
    t0 = clock.now()
    budgets = [sequence.budget for sequence in sequences]
    trees = drafter.propose(states, budgets)
    for tree, budget in zip(trees, budgets, strict=True):
        if tree.depth > budget:
            raise ValueError(f"{type(drafter).__name__} drafted {tree.depth} tokens deep, with a budget of {budget}")
    t1 = clock.now()
    outs = target.forward(store, trees)
    verified = [sequence.verifier.verify(tree, out.logits) for sequence, tree, out in zip(sequences, trees, outs, strict=True)]
    clock.draft, clock.verify = clock.draft + t1 - t0, clock.verify + clock.now() - t1
    for row, (sequence, tree, choice) in enumerate(zip(sequences, trees, verified, strict=True)):
        if not sequence.generation.finish_reason:
            store.keep(row, choice.path)
            _record(sequence, tree, choice)
    drafter.update(states, trees, outs, verified)


def _record(sequence: _Sequence, tree: DraftTree, choice: Verification) -> None:
    out = sequence.generation
    committed = sequence.commit(choice.tokens)
    out.committed.append(committed)
    out.accepted.append(min(len(choice.path) - 1, committed))
    out.drafted.append(tree.drafted)
    out.nodes.append(len(tree))
    out.depth.append(tree.depth)
