"""The one decode loop: draft a tree, verify it in one target forward, commit the accepted path. See `_run_step`."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Literal

import torch
from torch import Tensor

from specbench.decoding.drafter import Drafter, SequenceContext
from specbench.decoding.kv_store import KVStore
from specbench.decoding.language_model import LanguageModel
from specbench.decoding.sampling import Sampling
from specbench.decoding.stopping import Ending, Forbidden
from specbench.decoding.tree import DraftTree
from specbench.decoding.verify import Verification, Verifier
from specbench.machine.devices import synchronize


class CapacityError(Exception):
    """The prompt leaves no room for one new token in the model's context."""


@dataclass
class Generation:
    """The output of one sequence and its cost. Lists have one entry per step; seconds are wall time."""

    output_ids: list[int] = field(default_factory=list)
    finish_reason: Literal["eos", "stop_string", "length", "capacity"] | None = None
    drafted: list[int] = field(default_factory=list)  # draft nodes, without root and scratch nodes
    nodes: list[int] = field(default_factory=list)  # rows of the target's forward, root included
    depth: list[int] = field(default_factory=list)  # of the draft's deepest node
    accepted: list[int] = field(default_factory=list)  # draft tokens kept
    committed: list[int] = field(default_factory=list)  # tokens written, after the cut at end-of-sequence and length
    prefill_s: float = 0.0
    decode_s: float = 0.0
    draft_s: float | None = None  # profiled runs only
    verify_s: float | None = None
    draft_forwards: int = 0
    sees_steps: bool = True  # False: the engine reports only tokens and total seconds

    @property
    def steps(self) -> int:
        return len(self.committed)


@dataclass
class _Sequence:
    generation: Generation
    limit: int  # most new tokens
    why: Literal["length", "capacity"]  # finish reason at the limit
    stops: frozenset[int]
    verifier: Verifier
    free: int  # tokens at the start that no stop token and no text ends
    forbidden: Forbidden | None
    ending: Ending | None

    @property
    def done(self) -> bool:
        return self.generation.finish_reason is not None

    @property
    def budget(self) -> int:
        """Greatest useful draft depth: room for the bonus token is left. 0 once finished, so the root alone is fed."""
        return 0 if self.done else self.limit - len(self.generation.output_ids) - 1

    def choose_first(self, logits: Tensor) -> int:
        """Choose and commit the token after the prompt. logits (V,)."""
        if self.forbidden is not None:
            depth = torch.zeros(1, dtype=torch.long, device=logits.device)
            (logits,) = self.forbidden.mask_logits(logits[None], depth, 0)
        with self._say_where():
            root = self.verifier.choose_first(logits)
        self.commit([root])
        return root

    def verify(self, tree: DraftTree, logits: Tensor) -> Verification:
        """Verify one draft tree. logits (N, V)."""
        if self.forbidden is not None:
            logits = self.forbidden.mask_logits(logits, tree.depths, len(self.generation.output_ids))
        with self._say_where():
            return self.verifier.verify(tree, logits)

    @contextmanager
    def _say_where(self) -> Iterator[None]:
        try:
            yield
        except ArithmeticError as error:
            raise ArithmeticError(f"after {len(self.generation.output_ids)} new tokens: {error}") from None

    def commit(self, tokens: list[int]) -> int:
        """Append tokens up to the first stop token, the end of a text or the limit; return how many were appended."""
        out = self.generation
        kept = tokens[: self.limit - len(out.output_ids)]
        for i, token in enumerate(kept):
            if token in self.stops:
                kept, out.finish_reason = kept[: i + 1], "eos"
                break
        if self.ending is not None:
            kept = self._cut_at_end(self.ending, kept)
        out.output_ids += kept
        if out.finish_reason is None and len(out.output_ids) >= self.limit:
            out.finish_reason = self.why
        return len(kept)

    def _cut_at_end(self, ending: Ending, tokens: list[int]) -> list[int]:
        """Return the tokens up to the end of a text; a stop token that ends with it counts as the reason."""
        out = self.generation
        written = len(out.output_ids)
        end = ending.find_end([*out.output_ids, *tokens], written, self.free)
        if end is None or (out.finish_reason and end == written + len(tokens)):
            return tokens
        out.finish_reason = "stop_string"
        return tokens[: end - written]

    def record(self, tree: DraftTree, choice: Verification) -> None:
        """Commit the tokens of one step and append its counts."""
        committed = self.commit(choice.tokens)
        out = self.generation
        out.committed.append(committed)
        out.accepted.append(min(len(choice.path) - 1, committed))
        out.drafted.append(tree.drafted)
        out.nodes.append(len(tree))
        out.depth.append(tree.depth)


def _start_sequence(target: LanguageModel, drafter: Drafter, row: int, prompt: int, sampling: Sampling) -> _Sequence:
    room = target.context - prompt
    if room < 1:
        raise CapacityError(f"a prompt of {prompt} tokens does not fit a context of {target.context}")
    why: Literal["length", "capacity"] = "length" if room >= sampling.max_new_tokens else "capacity"
    limit = min(room, sampling.max_new_tokens)
    stops, least = sampling.stop_token_ids, sampling.min_new_tokens
    forbidden = Forbidden.build(stops, least, target.vocabulary, target.device) if least else None
    return _Sequence(
        Generation(), limit, why, frozenset(stops), drafter.verifier(sampling, row), least, forbidden, sampling.ending
    )


class Clock:
    """Seconds spent drafting and verifying. It synchronises the device, so it runs in profiled runs only."""

    def __init__(self, device: torch.device, on: bool) -> None:
        self.device, self.on = device, on
        self.draft = self.verify = 0.0

    def now(self) -> float:
        if self.on:
            synchronize(self.device)
        return perf_counter() if self.on else 0.0


def capacity(target: LanguageModel, drafter: Drafter, prompt: int, sampling: Sampling) -> int:
    """KV entries needed to decode a prompt of `prompt` tokens: prompt, answer and the largest branched tree."""
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
    """Decode prompts, (T,) int64 each on the target's device, with a drafter bound to the target.

    Raises CapacityError before the first forward.
    """
    sequences = [_start_sequence(target, drafter, row, len(prompt), sampling) for row, prompt in enumerate(prompts)]
    needed = max(capacity(target, drafter, len(prompt), sampling) for prompt in prompts)
    if store is None or store.capacity < needed or store.batch != len(prompts):
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
    """Prefill, commit the first token of each sequence, then run steps until all have finished."""
    start = perf_counter()
    outs = target.prefill(store, prompts, all_logits=drafter.prompt_logits)
    roots = [sequence.choose_first(out.logits[-1]) for sequence, out in zip(sequences, outs, strict=True)]
    prefilled = perf_counter()
    if not all(sequence.done for sequence in sequences):
        contexts = [SequenceContext(store.view_row(row), sequence.verifier) for row, sequence in enumerate(sequences)]
        texts = [[*prompt.tolist(), root] for prompt, root in zip(prompts, roots, strict=True)]
        states = drafter.begin(texts, outs, contexts)
        running = sequences
        while not all(sequence.done for sequence in running):
            running, states = _drop_finished(running, states, store)
            _run_step(target, drafter, states, running, store, clock)
    end = perf_counter()
    for sequence in sequences:
        sequence.generation.prefill_s, sequence.generation.decode_s = prefilled - start, end - prefilled


def _drop_finished(sequences: list[_Sequence], states: list[Any], store: KVStore) -> tuple[list[_Sequence], list[Any]]:
    """Take finished sequences out of the batch once they are half of it; every time would move the others' entries too often."""
    places = [place for place, sequence in enumerate(sequences) if not sequence.done]
    if 2 * len(places) > len(sequences):
        return sequences, states
    store.retain(places)
    return [sequences[place] for place in places], [states[place] for place in places]


def _run_step(
    target: LanguageModel, drafter: Drafter, states: list[Any], sequences: list[_Sequence], store: KVStore, clock: Clock
) -> None:
    start = clock.now()
    budgets = [sequence.budget for sequence in sequences]
    trees = drafter.propose(states, budgets)  # one draft tree per sequence
    for tree, budget in zip(trees, budgets, strict=True):
        if tree.depth_limit > budget:
            raise ValueError(f"{type(drafter).__name__} drafted {tree.depth_limit} tokens deep, with a budget of {budget}")
    drafted = clock.now()
    outs = target.forward(store, trees)  # one forward for all sequences
    verified = [sequence.verify(tree, out.logits) for sequence, tree, out in zip(sequences, trees, outs, strict=True)]
    clock.draft += drafted - start
    clock.verify += clock.now() - drafted
    for row, (sequence, tree, choice) in enumerate(zip(sequences, trees, verified, strict=True)):
        if not sequence.done:
            store.keep(row, choice.path, choice.path_ids if choice.branches else None)  # drop the rest of the tree
            sequence.record(tree, choice)
    drafter.update(states, trees, outs, verified)
