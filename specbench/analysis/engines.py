"""Compare a method on several engines: do they write the same texts, and draft and accept the same, step by step?

A method's texts are compared with those of its own engine's autoregressive decoding, its steps with those of the run's first
engine. Only first repeats are compared: greedy decoding repeats itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import NamedTuple

import pandas as pd

from specbench.analysis.loaded_run import LoadedRun, order_methods
from specbench.records.trial import BASELINE, QuestionId, Trial

Turn = tuple[str, QuestionId, int]  # task, question, turn
Texts = dict[tuple[str, QuestionId, int], str]  # label, question, turn
TEXTS, END, LAST, ONE_DRAFTS, LENGTH, TOKENS = (
    "the texts differ", "a drafted end of sequence counts as accepted on only one", "the last draft is shorter on one",
    "one drafts where the other does not", "drafts of different lengths", "drafts of different tokens",
)  # fmt: skip
COLUMNS = [
    "label", "turns", "equal_texts", "text_difference", "compared_with", "compared_turns", "same_texts",
    "mean_accepted_tokens", "other_mean_accepted_tokens", "equal_turns", "steps", "equal_steps", "step_difference", "reasons",
]  # fmt: skip


class StepDifference(NamedTuple):
    """step: from 1. drafted, accepted: here and there; None: that engine has no such step."""

    step: int
    drafted: tuple[int | None, int | None]
    accepted: tuple[int | None, int | None]
    reason: str


def has_engines(run: LoadedRun) -> bool:
    """Return whether the run has more than one engine, or a server."""
    return any("@" in trial.method or trial.client_first_s is not None for trial in run.trials)


def tabulate_engines(run: LoadedRun) -> pd.DataFrame:
    """Return a row per label of COLUMNS: how its texts and steps agree with those of the same engine, and of the first one."""
    if not has_engines(run):
        return pd.DataFrame(columns=COLUMNS)
    turns = _collect_turns(run.trials)
    texts: Texts = {(row["method"], row["question_id"], row["turn"]): row["text"] for row in run.texts}
    rows = []
    for label in order_methods([run]):
        method, _, engine = label.partition("@")
        baseline = f"{BASELINE}@{engine}" if engine else BASELINE
        own = {} if method == BASELINE else _compare_texts(turns.get(label, {}), turns.get(baseline, {}), texts)
        other = _compare_engines(turns.get(label, {}), turns.get(method, {}), texts) if engine else {}
        rows.append({"label": label, **own, **({"compared_with": method, **other} if other else {})})
    return pd.DataFrame(rows, columns=COLUMNS)


def _collect_turns(trials: Sequence[Trial]) -> dict[str, dict[Turn, Trial]]:
    """Return, by label, the first repeat's turns that did not fail."""
    turns: dict[str, dict[Turn, Trial]] = {}
    for trial in trials:
        if trial.repeat == 0 and not trial.failed:
            turns.setdefault(trial.method, {})[trial.task, trial.question_id, trial.turn] = trial
    return turns


def _pair(ours: dict[Turn, Trial], theirs: dict[Turn, Trial]) -> Iterator[tuple[Turn, Trial, Trial]]:
    """Yield the turns that both have, from the same prompt."""
    for turn, trial in ours.items():
        if turn in theirs and theirs[turn].prompt_sha256 == trial.prompt_sha256:
            yield turn, trial, theirs[turn]


def _compare_texts(ours: dict[Turn, Trial], baseline: dict[Turn, Trial], texts: Texts) -> dict[str, object]:
    pairs = list(_pair(ours, baseline))
    different = [(turn, trial, other) for turn, trial, other in pairs if not is_same_text(trial, other)]
    first = describe_difference(*different[0], texts) if different else ""
    return {"turns": len(pairs), "equal_texts": len(pairs) - len(different), "text_difference": first}


def is_same_text(trial: Trial, other: Trial) -> bool:
    """Return whether two turns have the same token ids; the same text, if one of them has no ids."""
    if trial.output_sha256 is not None and other.output_sha256 is not None:
        return trial.output_sha256 == other.output_sha256
    return trial.text_sha256 is not None and trial.text_sha256 == other.text_sha256


def describe_difference(turn: Turn, trial: Trial, other: Trial, texts: Texts) -> str:
    """Return where two turns first differ, in words."""
    _, question, number = turn
    place = f"question {question}, turn {number + 1}"
    if trial.output_ids is not None and other.output_ids is not None:
        at, ours, theirs = find_first(trial.output_ids, other.output_ids)
        return f"{place}, token {at + 1}: {_show(ours)} instead of {_show(theirs)}"
    pair = [texts.get((one.method, question, number)) for one in (trial, other)]
    if None in pair:
        return place
    at, _, _ = find_first(*(list(text or "") for text in pair))
    return f"{place}, character {at + 1}"


def find_first(ours: Sequence[object], theirs: Sequence[object]) -> tuple[int, object, object]:
    """Return the first place at which two sequences differ, and what each has there; None beyond its end."""
    for place, (one, other) in enumerate(zip_longest(ours, theirs)):
        if one != other:
            return place, one, other
    return len(ours), None, None


def _show(token: object) -> str:
    return "the end" if token is None else str(token)


def _compare_engines(ours: dict[Turn, Trial], theirs: dict[Turn, Trial], texts: Texts) -> dict[str, object]:
    """Compare the same method on two engines."""
    pairs = list(_pair(ours, theirs))
    told = [(turn, one, other) for turn, one, other in pairs if one.drafted is not None and other.drafted is not None]
    differences = {turn: find_step_difference(one, other) for turn, one, other in told}
    found = {turn: difference for turn, difference in differences.items() if difference}
    equal = sum(_count_equal(one, differences[turn]) for turn, one, _ in told)
    reasons = Counter(difference.reason for difference in found.values())
    return {
        "compared_turns": len(pairs),
        "same_texts": sum(is_same_text(one, other) for _, one, other in pairs),
        "mean_accepted_tokens": _compute_mean_accepted([one for _, one, _ in pairs]),
        "other_mean_accepted_tokens": _compute_mean_accepted([other for _, _, other in pairs]),
        "equal_turns": len(told) - len(found),
        "steps": sum(one.steps or 0 for _, one, _ in told),
        "equal_steps": equal,
        "step_difference": next((_describe_step(turn, difference) for turn, difference in found.items()), ""),
        "reasons": "; ".join(f"{reason}: {count} turns" for reason, count in reasons.most_common()),
    }


def _count_equal(trial: Trial, difference: StepDifference | None) -> int:
    """Return the steps before the first that differs."""
    return difference.step - 1 if difference else trial.steps or 0


def find_step_difference(one: Trial, other: Trial) -> StepDifference | None:
    """Return the first step in which two turns of one prompt drafted or accepted different numbers of tokens, or None."""
    steps = zip_longest(
        one.drafted or (),
        other.drafted or (),
        one.accepted or (),
        other.accepted or (),
        one.committed or (),
    )
    written = 1  # the prefill's token
    for number, (drafted, there, accepted, accepted_there, committed) in enumerate(steps, start=1):
        if (drafted, accepted) != (there, accepted_there):
            drafts = (drafted, there)
            return StepDifference(number, drafts, (accepted, accepted_there), _explain(one, other, number, written, drafts))
        written += committed or 0
    return None


def _explain(one: Trial, other: Trial, number: int, written: int, drafted: tuple[int | None, int | None]) -> str:
    """Return why a step differs. written: tokens before it."""
    at, _, _ = find_first(one.output_ids or (), other.output_ids or ())
    if not is_same_text(one, other) and at <= written + max(value or 0 for value in drafted):
        return TEXTS
    last = number == max(one.steps or 0, other.steps or 0)
    if drafted[0] == drafted[1]:
        return END if last and one.finish_reason == "eos" and one.steps == other.steps else TOKENS
    if last:
        return LAST
    return ONE_DRAFTS if 0 in drafted else LENGTH


def _describe_step(turn: Turn, found: StepDifference) -> str:
    _, question, number = turn
    here, there = (
        f"drafted {drafted}, accepted {accepted}" if drafted is not None else "no such step"
        for drafted, accepted in zip(found.drafted, found.accepted, strict=True)
    )
    return f"question {question}, turn {number + 1}, step {found.step}: {here}; there {there}"


def _compute_mean_accepted(trials: Sequence[Trial]) -> float:
    """Return committed tokens per step; nan if a turn does not report its steps."""
    if not trials or any(trial.steps is None for trial in trials):
        return float("nan")
    steps = sum(trial.steps or 0 for trial in trials)
    return sum(trial.new_tokens - 1 for trial in trials) / steps if steps else float("nan")
