"""Rules that the counts and times of every trial obey: a turn that breaks one was not measured.

A failed row has no numbers. An imported turn is counted as its program counts: only the lengths of its lists and its times are
checked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from specbench.errors import InputError
from specbench.records.attempts import AttemptKey, get_attempt_key
from specbench.records.trial import BASELINE, OVERALL, PER_STEP, BlockKey, QuestionId, Trial, TrialKey, hash_ids

FASTEST = 1e6  # tokens per second: nothing decodes one sequence faster
RETOKENISED = 100  # tokens that one token's text may be encoded as
ROUNDING = 1.001
MOST_CUT = 256  # accepted tokens of the last step that the end of an answer may cut off


def parse_trial(row: Mapping[str, Any]) -> Trial:
    """Parse a row into a turn that can have happened. Raises InputError."""
    trial = Trial.from_row(row)
    check_trial(trial)
    return trial


def check_trial(trial: Trial) -> None:
    """Raise InputError for a turn that cannot have happened."""
    if trial.task == OVERALL:
        raise InputError(f"task is {OVERALL}, which means all tasks")
    if trial.turns is not None and trial.turn >= trial.turns:
        raise InputError(f"turn is {trial.turn} of a question with {trial.turns} turns")
    if (trial.attempt > 1) != (trial.arms is not None):
        raise InputError(f"arms is {trial.arms} in attempt {trial.attempt}; expected null in the first, else a number")
    if trial.attempt > 1 and trial.state != "cold":
        raise InputError(f"state is {trial.state} in attempt {trial.attempt}, expected cold: only those are measured again")
    if (trial.group is None) != (trial.place is None) or (trial.group is None and trial.batch > 1):
        raise InputError(f"batch {trial.batch}, group {trial.group}, place {trial.place}: expected all of them, or a batch of 1")
    if trial.place is not None and trial.place >= trial.batch:
        raise InputError(f"place is {trial.place} in a batch of {trial.batch}")
    if not trial.failed:
        problem = next((said for rule in (_check_output, _check_steps, _check_times) for said in rule(trial)), None)
        if problem:
            raise InputError(problem)


def _check_output(trial: Trial) -> Iterator[str]:
    if trial.new_tokens < 1 and trial.kind != "imported":
        yield f"new_tokens is {trial.new_tokens} in a turn that did not fail"
    if (trial.retokenised or 0) > RETOKENISED * (trial.new_tokens + 1):
        yield f"retokenised is {trial.retokenised} for {trial.new_tokens} new_tokens"
    if trial.output_ids is None:
        return
    if len(trial.output_ids) != trial.new_tokens:
        yield f"output_ids holds {len(trial.output_ids)} ids, but new_tokens is {trial.new_tokens}"
    elif trial.output_sha256 != hash_ids(trial.output_ids):
        yield "output_sha256 is not that of output_ids"


def _check_steps(trial: Trial) -> Iterator[str]:
    lists = {name: getattr(trial, name) for name in PER_STEP}
    given = {name: values for name, values in lists.items() if values is not None}
    for name, values in given.items():
        if len(values) != trial.steps:
            yield f"{name} holds {len(values)} counts, but steps is {trial.steps}"
            return
    if trial.kind == "imported":
        return
    if trial.sums is not None:
        yield from _check_sums(trial, trial.sums, bool(given))
    elif (given and len(given) < len(lists)) or ((trial.steps is None) != (not given) and trial.sums is None):
        yield f"steps, {', '.join(PER_STEP)}: expected all of them, or none"
    elif given:
        yield from _compare_counts(trial, *lists.values())


def _check_sums(trial: Trial, sums: Mapping[str, int], has_lists: bool) -> Iterator[str]:
    if has_lists:
        yield "sums: expected null in a turn that has lists of its steps"
    elif sums.keys() != {"drafted", "accepted"}:
        yield f"sums holds {', '.join(sums)}; expected drafted and accepted"
    elif not sums["accepted"] <= sums["drafted"] or sums["accepted"] > max(trial.new_tokens - 1, 0) + MOST_CUT:
        counts = f"drafted {sums['drafted']}, accepted {sums['accepted']}"
        yield f"sums: {counts} for {trial.new_tokens} new_tokens: more than the answer can hold"


def _compare_counts(
    trial: Trial, drafted: list[int], nodes: list[int], depth: list[int], accepted: list[int], committed: list[int]
) -> Iterator[str]:
    if trial.new_tokens != 1 + sum(committed):
        yield f"new_tokens is {trial.new_tokens}, but prefill's token and committed make {1 + sum(committed)}"
    for step, (draft, rows, deep, kept, new) in enumerate(zip(drafted, nodes, depth, accepted, committed, strict=True)):
        if not (kept <= deep <= draft < rows and 1 <= new <= kept + 1):
            counts = f"drafted {draft}, nodes {rows}, depth {deep}, accepted {kept}, committed {new}"
            yield f"step {step + 1}: {counts}; expected accepted ≤ depth ≤ drafted < nodes, and committed from 1 to accepted + 1"
            return
    if (trial.target_forwards or 0) < (trial.steps or 0):
        yield f"target_forwards is {trial.target_forwards} in {trial.steps} steps"


def _check_times(trial: Trial) -> Iterator[str]:
    if trial.kind == "replayed":
        if trial.decode_s is not None or trial.prefill_s is not None:
            yield "prefill_s and decode_s: expected null in a replayed turn"
        return
    if trial.decode_s is None:
        yield "decode_s is null in a turn that did not fail"
        return
    seconds = (trial.prefill_s or 0) + trial.decode_s
    if seconds * FASTEST < max(1, trial.new_tokens):
        yield f"prefill_s and decode_s make {seconds:g} s for {trial.new_tokens} tokens: impossibly fast"
    if (trial.draft_s or 0) + (trial.verify_s or 0) > ROUNDING * trial.decode_s:
        yield f"draft_s and verify_s exceed decode_s, {trial.decode_s:g}"


class Questions:
    """The questions of one run's trials, which are the same for every method."""

    def __init__(self) -> None:
        self._places: dict[QuestionId, tuple[str, str, str]] = {}
        self._spelled: dict[str, QuestionId] = {}
        self._turns: dict[QuestionId, int] = {}

    def check(self, trial: Trial) -> None:
        """Raise InputError if an earlier trial of the same question belongs to another suite, task or category."""
        if (known := self._spelled.setdefault(str(trial.question_id), trial.question_id)) != trial.question_id:
            raise InputError(f"question_id is {trial.question_id!a}, but {known!a} in an earlier row")
        place = (trial.suite, trial.task, trial.category)
        if (before := self._places.setdefault(trial.question_id, place)) != place:
            there = f"{'/'.join(before)} in an earlier row"
            raise InputError(f"question {trial.question_id} belongs to {'/'.join(place)}, but to {there}")
        if trial.turns is not None and (turns := self._turns.setdefault(trial.question_id, trial.turns)) != trial.turns:
            raise InputError(f"question {trial.question_id} has {trial.turns} turns, but {turns} in an earlier row")


class Turns:
    """The turns of one run: those of a cold method come once per attempt, those of a warm one again when its repeat restarts."""

    def __init__(self) -> None:
        self._states: dict[AttemptKey, str] = {}
        self._arms: dict[tuple[BlockKey, int], int | None] = {}

    def check(self, trial: Trial) -> None:
        """Raise InputError for a cold method's turn that an earlier row has, and for `arms` that differ within an attempt."""
        key = get_attempt_key(trial)
        before = self._states.get(key)
        if before and "cold" in (before, trial.state):
            raise InputError(f"{trial.method} has this turn twice, both times as attempt {trial.attempt}: two runs in one file?")
        self._states[key] = trial.state
        arms = self._arms.setdefault((trial.block, trial.attempt), trial.arms)
        if arms != trial.arms:
            raise InputError(f"arms is {trial.arms} in attempt {trial.attempt}, but {arms} in an earlier row")


class Groups:
    """The groups of one run, the same for every method; the questions of a group were decoded together and share one time."""

    def __init__(self) -> None:
        self._places: dict[tuple[int, int], QuestionId] = {}
        self._of: dict[QuestionId, tuple[int | None, int | None, int]] = {}
        self._times: dict[tuple[str, BlockKey, int], tuple[float | None, ...]] = {}

    def check(self, trial: Trial) -> None:
        """Raise InputError for a question in two groups, two questions at one place, and times that differ within a group."""
        spot = (trial.group, trial.place, trial.batch)
        if (before := self._of.setdefault(trial.question_id, spot)) != spot:
            raise InputError(f"group, place, batch are {spot}, but {before} in an earlier row of the same question")
        if trial.group is None or trial.place is None:
            return
        if (other := self._places.setdefault((trial.group, trial.place), trial.question_id)) != trial.question_id:
            where = f"place {trial.place} of group {trial.group}"
            raise InputError(f"{where} is question {trial.question_id}, but {other} in an earlier row")
        if not trial.failed and trial.state == "cold":
            times = (trial.prefill_s, trial.decode_s, trial.energy_j)
            if self._times.setdefault((trial.method, trial.block, trial.attempt), times) != times:
                raise InputError(f"prefill_s, decode_s, energy_j differ within group {trial.group}, which shares them")


class Prompts:
    """The prompts of one run's turns, which every method shares, unless its second turn continues from its own answer."""

    def __init__(self) -> None:
        self._prompts: dict[tuple[QuestionId, int], tuple[int, str]] = {}
        self._seen: set[TrialKey] = set()

    def check(self, trial: Trial) -> None:
        """Raise InputError for a prompt other than an earlier row's of that turn, and for a turn without the one before it."""
        self._check_order(trial)
        if trial.failed or trial.kind == "imported" or (trial.context == "own" and trial.turn):
            return
        prompt = (trial.prompt_tokens, trial.prompt_sha256)
        tokens, sha256 = self._prompts.setdefault((trial.question_id, trial.turn), prompt)
        if trial.prompt_tokens != tokens:
            raise InputError(f"prompt_tokens is {trial.prompt_tokens}, but {tokens} in an earlier row of the same turn")
        if trial.prompt_sha256 != sha256:
            raise InputError("prompt_sha256 is not that of the same turn in an earlier row")

    def _check_order(self, trial: Trial) -> None:
        """A replay leaves out turns that failed; every other run has all turns of a question."""
        self._seen.add(trial.key)
        before = (*trial.key[:3], trial.turn - 1)
        if trial.turn and trial.kind != "replayed" and before not in self._seen:
            raise InputError(f"turn is {trial.turn}, but no earlier row has turn {trial.turn - 1} of {trial.method}")


class Origins:
    """The origin of one run's rows: one program, one kind of context, and the methods of its config."""

    def __init__(self, methods: Iterable[str]) -> None:
        """methods: those of the config; an imported run has none, and any may be in it."""
        self._methods = frozenset(methods)
        self._first: tuple[str, str] | None = None

    def check(self, trial: Trial) -> None:
        """Raise InputError for a row of another program, with another context or of a method that the config lacks."""
        program = trial.kind if trial.kind in ("imported", "replayed") else "measured or synthetic"
        first, context = self._first = self._first or (program, trial.context)
        if program != first:
            raise InputError(f"kind is {trial.kind}, but {first} in an earlier row")
        if trial.context != context:
            raise InputError(f"context is {trial.context}, but {context} in an earlier row")
        self.check_method(trial.method)

    def check_method(self, method: str) -> None:
        """Raise InputError for a method that the config lacks."""
        if self._methods and method.partition("@")[0] not in {BASELINE, *self._methods}:
            raise InputError(f"method is {method!a}, which config.yaml does not have")
