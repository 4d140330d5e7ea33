"""The record of one turn, and of the prompt it started from."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from specbench.bounds import LARGEST, Within
from specbench.errors import InputError
from specbench.records.typed import Label, Name, Sha256, check, check_fields

SCHEMA = 1

BASELINE = "autoregressive"

OVERALL = "overall"  # the tables' name for all tasks together

PER_STEP = ("drafted", "nodes", "depth", "accepted", "committed")  # lists of a trial

QuestionId = int | str

Seconds = Annotated[float, Within(0, 1e8)]  # of a turn

TokenId = Annotated[int, Within(0, 2**31)]

# What the fields of a trial or a prompt may be, where their annotation is too general.
LIMITS: dict[str, Any] = {
    "schema": Annotated[int, Within(SCHEMA, SCHEMA)],
    "run_id": Name,
    "suite": Name,
    "task": Label,
    "category": Name,
    "question_id": Annotated[int, Within(-LARGEST, LARGEST)] | Name,
    "turns": Annotated[int, Within(1, 1e6)] | None,
    "context": Literal["reference", "own"],
    "method": Label,
    "seed": Annotated[int, Within(-(2**63), 2**63)],
    "state": Literal["cold", "warm"],
    "kind": Literal["measured", "synthetic", "replayed", "imported"],
    "prompt_sha256": Sha256 | Literal[""],
    "finish_reason": Literal["eos", "stop_string", "length", "capacity", "error"],
    "prefill_s": Seconds | None,
    "decode_s": Seconds | None,
    "draft_s": Seconds | None,
    "verify_s": Seconds | None,
    "prompt_ids": list[TokenId] | None,
    "output_ids": list[TokenId] | None,
    "output_sha256": Sha256 | None,
    "retokenised": Annotated[int, Within(-1, LARGEST)] | None,  # Spec-Bench takes one off, also from an empty text
    "sha256": Sha256,
    "disturbed": list[Name] | None,
    "attempt": Annotated[int, Within(1, 1e6)],
    "arms": Annotated[int, Within(1, 1e6)] | None,
    "batch": Annotated[int, Within(1, 1e6)],
    "group": Annotated[int, Within(0, LARGEST)] | None,
    "place": Annotated[int, Within(0, 1e6)] | None,
    "concurrency": Annotated[int, Within(1, 1e6)],
    "client": Annotated[int, Within(0, 1e6)] | None,
    "began_s": Seconds | None,
    "client_first_s": Seconds | None,
    "client_last_s": Seconds | None,
    "sums": dict[Literal["drafted", "accepted"], Annotated[int, Within(0, LARGEST)]] | None,
    "text_sha256": Sha256 | None,
}

TrialKey = tuple[str, int, QuestionId, int]

BlockKey = tuple[int, QuestionId, int]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One turn of one question by one method: counts, seconds and ids. Ratios are computed later, from counts."""

    schema: int = SCHEMA
    run_id: str
    suite: str
    task: str
    category: str
    question_id: QuestionId
    turn: int
    turns: int | None = None  # of the question, which counts once all of them are there; None: not known
    context: str  # reference: turn 2 continues from autoregressive's answer; own: from the method's own
    method: str  # the label
    seed: int
    repeat: int
    order: int  # position in the block
    state: str  # cold | warm
    kind: str = "measured"  # | synthetic: drafts made from the answer itself | replayed: only counts | imported
    prompt_tokens: int
    prompt_sha256: str
    new_tokens: int
    finish_reason: str  # eos | stop_string | length | capacity | error
    steps: int | None = None
    target_forwards: int | None = None
    draft_forwards: int | None = None
    drafted: list[int] | None = None  # per step: draft nodes, without root and scratch
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
    throttled: list[str] | None = None  # why clocks were held down during the turn; None: not known
    disturbed: list[str] | None = None  # what else used the machine during the turn, as `kind: how much`; None: not known
    attempt: int = 1  # 2 if its block was disturbed and measured again
    arms: int | None = None  # of a later attempt: how many turns belong to it
    batch: int = 1  # questions of its group, decoded side by side; seconds, energy and memory are the group's
    group: int | None = None  # its number in the run; None: decoded alone
    place: int | None = None  # in the group
    concurrency: int = 1  # requests that the server was sent at a time
    client: int | None = None  # which of the clients sent it
    began_s: float | None = None  # when it was sent, since the first request of its method and repeat; only under load
    client_first_s: float | None = None  # by the clock here, from the request to the first token, of a server
    client_last_s: float | None = None  # and to the last; up to 0.02 s late where the server tells its own times
    sums: dict[str, int] | None = None  # drafted and accepted tokens over all steps, of a server that tells no single step
    text_sha256: str | None = None  # of the text, of a turn that may be compared with one without ids
    error: str | None = None

    @property
    def key(self) -> TrialKey:
        """The fields that identify a trial in a run."""
        return (self.method, self.repeat, self.question_id, self.turn)

    @property
    def block(self) -> BlockKey:
        """The repeat, question or group, and turn that it shares with the other methods."""
        return (self.repeat, name_unit(self.question_id, self.group), self.turn)

    @property
    def seconds(self) -> float:
        """Time from the prompt's ids to the last output id; 0 if it was not timed."""
        return (self.prefill_s or 0.0) + (self.decode_s or 0.0)

    @property
    def failed(self) -> bool:
        """Whether this is an error row, which has no speed."""
        return self.finish_reason == "error" or self.error is not None

    def to_row(self) -> dict[str, Any]:
        """Return the record as a JSON object with every field."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Trial:
        """Parse a row. Raises InputError on another schema version, an unknown or a missing field, or one of another type."""
        if row.get("schema") != SCHEMA:
            raise InputError(f"schema version {row.get('schema')!r}, this specbench reads version {SCHEMA}")
        fields = dataclasses.fields(cls)
        unknown = sorted(set(row) - {field.name for field in fields})
        missing = [field.name for field in fields if field.default is dataclasses.MISSING and field.name not in row]
        if unknown or missing:
            raise InputError(f"not a trial: unknown fields {unknown}, missing fields {missing}")
        check_fields(cls, row, LIMITS)
        return cls(**row)


def name_unit(question_id: QuestionId, group: int | None) -> QuestionId:
    """Return what is paired and resampled: the question, or the group that it is decoded in."""
    return question_id if group is None else f"group {group}"


# Fields that a turn of another program does not record.
IMPORTED: dict[str, Any] = {"context": "own", "seed": 0, "order": 0, "state": "cold", "kind": "imported"}


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """The token ids that a turn started from; `method` is set only if every method has its own context.

    prompt_ids: None in a run that keeps no texts. strata: what groups the question besides task and category, by name; None if
    nothing does.
    """

    question_id: QuestionId
    turn: int
    prompt_ids: list[int] | None
    sha256: str
    method: str | None = None
    strata: dict[str, str] | None = None

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Prompt:
        """Parse a row. Raises InputError on other fields, types or another fingerprint than that of its ids."""
        fields = {field.name for field in dataclasses.fields(cls)}
        if not fields - {"method", "strata"} <= set(row) <= fields:
            raise InputError(f"not a prompt: fields {sorted(row)}")
        check_fields(cls, row, LIMITS | {"method": Label | None, "strata": dict[str, Label] | None})
        for name in row.get("strata") or ():
            check(name, Label, "a name in strata")
        if row["prompt_ids"] is not None and row["sha256"] != hash_ids(row["prompt_ids"]):
            raise InputError("sha256 is not that of prompt_ids")
        return cls(**row)


def hash_ids(ids: Sequence[int]) -> str:
    """Return the fingerprint of token ids: sha256 of their decimal numbers joined by commas."""
    return hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()


def hash_text(text: str) -> str:
    """Return the fingerprint of a text."""
    return hashlib.sha256(text.encode()).hexdigest()
