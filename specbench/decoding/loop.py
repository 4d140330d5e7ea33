"""The one decode loop: draft a tree, verify it in one target forward, commit the accepted path. See `_run_step`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any, Literal

import torch
from torch import Tensor

from specbench.decoding.drafter import Drafter, DraftWork, SequenceContext
from specbench.decoding.kv_store import KVStore
from specbench.decoding.language_model import LanguageModel
from specbench.decoding.sampling import Sampling, spread_seed
from specbench.decoding.stopping import Ending, Forbidden
from specbench.decoding.tree import DraftTree
from specbench.decoding.tree_batch import read_depths
from specbench.decoding.verify import Conclude, Verification, Verifier
from specbench.decoding.verify_group import examine_group, upload_group
from specbench.machine.devices import synchronize


class CapacityError(Exception):
    """The prompt leaves no room for one new token in the model's context."""


@dataclass
class Generation:
    """The output of one sequence and its cost. Lists have one entry per step; seconds are wall-clock time."""

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
    error: Exception | None = None  # why this sequence failed; the rest of its batch continued

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
    free: int  # tokens at the start at which no stop token or text ends the answer
    forbidden: Forbidden | None
    ending: Ending | None
    work: DraftWork

    @property
    def done(self) -> bool:
        return self.generation.finish_reason is not None or self.generation.error is not None

    @property
    def budget(self) -> int:
        """Greatest useful draft depth, which leaves room for the bonus token. 0 once finished: only the root is fed."""
        return 0 if self.done else self.limit - len(self.generation.output_ids) - 1

    def choose_first(self, logits: Tensor) -> int:
        """Choose and commit the token after the prompt. logits (V,). 0 if it fails."""
        if self.forbidden is not None:
            depth = torch.zeros(1, dtype=torch.long, device=logits.device)
            (logits,) = self.forbidden.mask_logits(logits[None], depth, 0)
        root = 0
        with self._note_failure():
            root = self.verifier.choose_first(logits)
            self.commit([root])
        return root

    def forbid(self, tree: DraftTree, logits: Tensor) -> Tensor:
        """Return logits (N, V) of a draft tree without the tokens that may not come yet."""
        if self.forbidden is None:
            return logits
        return self.forbidden.mask_logits(logits, tree.depths, len(self.generation.output_ids))

    def conclude(self, tree: DraftTree, verify: Conclude) -> Verification:
        """Verify a draft tree. If the sequence fails, only the root is kept."""
        with self._note_failure():
            return verify()
        return Verification([0], 0, [0], tree.tokens.device)

    @contextmanager
    def _note_failure(self) -> Iterator[None]:
        """Record an arithmetic error as this sequence's own, so that the rest of the batch continues."""
        try:
            yield
        except ArithmeticError as error:
            self.generation.error = ArithmeticError(f"after {len(self.generation.output_ids)} new tokens: {error}")

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

    def record(self, tree: DraftTree, choice: Verification, depth: int) -> None:
        """Commit the tokens of one step and append its counts."""
        committed = self.commit(choice.tokens)
        out = self.generation
        out.committed.append(committed)
        out.accepted.append(min(len(choice.path) - 1, committed))
        out.drafted.append(tree.drafted)
        out.nodes.append(len(tree))
        out.depth.append(depth)


def _start_sequence(target: LanguageModel, drafter: Drafter, prompt: int, sampling: Sampling) -> _Sequence:
    """Return a sequence that has not begun; one whose prompt leaves no room has failed."""
    room = target.context - prompt
    why: Literal["length", "capacity"] = "length" if room >= sampling.max_new_tokens else "capacity"
    limit = min(room, sampling.max_new_tokens)
    stops, least = sampling.stop_token_ids, sampling.min_new_tokens
    forbidden = Forbidden.build(stops, least, target.vocabulary, target.device) if least else None
    out = Generation()
    if room < 1:
        out.error = _describe_excess(target, prompt)
    verifier = drafter.verifier(sampling)
    return _Sequence(out, limit, why, frozenset(stops), verifier, least, forbidden, sampling.ending, DraftWork())


def _describe_excess(target: LanguageModel, prompt: int) -> CapacityError:
    return CapacityError(f"a prompt of {prompt} tokens does not fit a context of {target.context}")


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


def generate(
    target: LanguageModel,
    drafter: Drafter,
    prompts: list[Tensor],
    sampling: Sampling,
    store: KVStore | None = None,
    profile: bool = False,
) -> list[Generation]:
    """Decode prompts, (T,) int64 each on the target's device, side by side with a drafter bound to the target.

    Raises CapacityError for a prompt that leaves no room, ArithmeticError where logits are not numbers.
    """
    for prompt in prompts:
        if len(prompt) >= target.context:
            raise _describe_excess(target, len(prompt))
    seeds = [sampling.seed] if len(prompts) == 1 else spread_seed(sampling.seed, len(prompts))
    outs = generate_group(target, drafter, prompts, [replace(sampling, seed=seed) for seed in seeds], store, profile)
    for out in outs:
        if out.error is not None:
            raise out.error
    return outs


@torch.inference_mode()
def generate_group(
    target: LanguageModel,
    drafter: Drafter,
    prompts: list[Tensor],
    samplings: list[Sampling],
    store: KVStore | None = None,
    profile: bool = False,
) -> list[Generation]:
    """As `generate`, but a failing sequence gets an `error` and the others continue. Every Generation has the group's seconds.

    samplings: may differ only in their seeds.
    """
    sequences = [_start_sequence(target, drafter, len(prompt), own) for prompt, own in zip(prompts, samplings, strict=True)]
    rows = [row for row, sequence in enumerate(sequences) if not sequence.done]
    if rows:
        fitting = [prompts[row] for row in rows]
        needed = max(capacity(target, drafter, len(prompt), samplings[0]) for prompt in fitting)
        if store is None or store.capacity < needed or store.batch < len(rows):
            store = target.create_store(needed, len(rows))
        store.clear(len(rows))
        drafter.prepare(fitting, [samplings[row] for row in rows], store.capacity)
        target.tap(drafter.taps)
        _decode(target, drafter, fitting, [sequences[row] for row in rows], store, Clock(target.device, profile))
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
        work = [DraftWork() if one.done else one.work for one in sequences]  # work for a sequence that has ended is not counted
        contexts = [SequenceContext(store.view_row(row), one.verifier, work[row]) for row, one in enumerate(sequences)]
        texts = [[*prompt.tolist(), root] for prompt, root in zip(prompts, roots, strict=True)]
        states = drafter.begin(texts, outs, contexts)
        running = sequences
        while not all(sequence.done for sequence in running):
            running, states = _drop_finished(drafter, running, states, store)
            _run_step(target, drafter, states, running, store, clock)
    end = perf_counter()
    for sequence in sequences:
        out = sequence.generation
        out.prefill_s, out.decode_s, out.draft_forwards = prefilled - start, end - prefilled, sequence.work.forwards
        if clock.on:
            out.draft_s, out.verify_s = clock.draft, clock.verify


def _drop_finished(
    drafter: Drafter, sequences: list[_Sequence], states: list[Any], store: KVStore
) -> tuple[list[_Sequence], list[Any]]:
    """Remove finished sequences from the batch once they are half of it; doing so each time would move entries too often."""
    places = [place for place, sequence in enumerate(sequences) if not sequence.done]
    if 2 * len(places) > len(sequences):
        return sequences, states
    store.retain(places)
    drafter.retain(places)
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
    rows = [row for row, sequence in enumerate(sequences) if not sequence.done]  # the others have ended and wait to be dropped
    running, trees, outs = [sequences[row] for row in rows], [trees[row] for row in rows], [outs[row] for row in rows]
    logits = [sequence.forbid(tree, out.logits) for sequence, tree, out in zip(running, trees, outs, strict=True)]
    concluding = examine_group([sequence.verifier for sequence in running], trees, logits)
    verified = [sequence.conclude(tree, verify) for sequence, tree, verify in zip(running, trees, concluding, strict=True)]
    clock.draft += drafted - start
    clock.verify += clock.now() - drafted
    verified = upload_group(verified)
    _keep(store, dict(zip(rows, verified, strict=True)))
    for sequence, tree, choice, depth in zip(running, trees, verified, read_depths(trees), strict=True):
        sequence.record(tree, choice, depth)
    verified = [_cut(choice, sequence.generation.committed[-1]) for sequence, choice in zip(running, verified, strict=True)]
    drafter.update([states[row] for row in rows], trees, outs, verified)


def _cut(choice: Verification, committed: int) -> Verification:
    """Return a verification without the tokens after the end of the sequence, which are not text to draft from."""
    return choice if committed == len(choice.tokens) else replace(choice, tokens=choice.tokens[:committed])


def _keep(store: KVStore, verified: Mapping[int, Verification]) -> None:
    """Commit the accepted path of each row; the rest of its tree is dropped."""
    if store.batch > 1:
        store.keep_all({row: choice.path for row, choice in verified.items()})
        return
    for row, choice in verified.items():
        store.keep(row, choice.path, choice.path_ids if choice.branches else None)
