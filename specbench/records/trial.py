"""The record of one turn, and of the prompt it started from."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from specbench.errors import InputError

SCHEMA = 1

PER_STEP = ("drafted", "nodes", "depth", "accepted", "committed")  # lists of a trial

QuestionId = int | str

TrialKey = tuple[str, int, QuestionId, int]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One turn of one question by one method: counts, seconds and ids. Ratios are made later, from counts."""

    schema: int = SCHEMA
    run_id: str
    suite: str
    task: str
    category: str
    question_id: QuestionId
    turn: int
    context: str  # reference: turn 2 continues from autoregressive's answer; own: from the method's own
    method: str  # the label
    seed: int
    repeat: int
    order: int  # position inside the block
    state: str  # cold | warm
    kind: str = "measured"  # | synthetic: the drafts were made from the answer itself | replayed: counts alone | imported
    prompt_tokens: int
    prompt_sha256: str
    new_tokens: int
    finish_reason: str  # eos | length | capacity | error
    steps: int | None = None
    target_forwards: int | None = None
    draft_forwards: int | None = None
    drafted: list[int] | None = None  # per step: draft nodes, root and scratch not counted
    nodes: list[int] | None = None  # per step: all rows computed
    depth: list[int] | None = None  # per step: deepest draft
    accepted: list[int] | None = None  # per step
    committed: list[int] | None = None  # per step, after the EOS and length cut
    prefill_s: float | None = None
    decode_s: float | None = None
    draft_s: float | None = None
    verify_s: float | None = None
    output_ids: list[int] | None = None
    output_sha256: str | None = None
    retokenised: int | None = None
    peak_memory_bytes: int | None = None
    energy_j: float | None = None  # of the whole card or processor
    throttled: list[str] | None = None  # why clocks were held down during the turn; None: nobody says
    error: str | None = None

    @property
    def key(self) -> TrialKey:
        """What makes a trial unique inside a run."""
        return (self.method, self.repeat, self.question_id, self.turn)

    @property
    def failed(self) -> bool:
        """An error row: it has no speed."""
        return self.finish_reason == "error" or self.error is not None

    def to_row(self) -> dict[str, Any]:
        """The record as a JSON object, every field present."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Trial:
        """Raises InputError on another schema version, an unknown or a missing field."""
        if row.get("schema") != SCHEMA:
            raise InputError(f"schema version {row.get('schema')!r}, this specbench reads version {SCHEMA}")
        fields = dataclasses.fields(cls)
        unknown = sorted(set(row) - {field.name for field in fields})
        needed = (field.name for field in fields if field.default is dataclasses.MISSING)
        missing = [name for name in needed if name not in row]
        if unknown or missing:
            raise InputError(f"not a trial: unknown fields {unknown}, missing fields {missing}")
        return cls(**row)


def import_trial(
    *,
    run_id: str,
    suite: str,
    task: str,
    category: str,
    question_id: QuestionId,
    turn: int,
    method: str,
    new_tokens: int,
    finish_reason: str,
    output_sha256: str,
) -> Trial:
    """A turn that another program ran, of which no more is known; dataclasses.replace() adds what is."""
    return Trial(
        run_id=run_id,
        suite=suite,
        task=task,
        category=category,
        question_id=question_id,
        turn=turn,
        context="own",
        method=method,
        seed=0,
        repeat=0,
        order=0,
        state="cold",
        kind="imported",
        prompt_tokens=0,
        prompt_sha256="",
        new_tokens=new_tokens,
        finish_reason=finish_reason,
        output_sha256=output_sha256,
    )


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """The ids a turn started from; `method` is set only where every method has its own context."""

    question_id: QuestionId
    turn: int
    prompt_ids: list[int]
    sha256: str
    method: str | None = None


def hash_ids(ids: Sequence[int]) -> str:
    """Fingerprint of token ids: sha256 of their decimal numbers joined by commas."""
    return hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()


BASELINE = "autoregressive"
