"""What every kind of server has in common: a request for one answer, the answer as it grows, and what is checked of both."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from specbench.decoding.sampling import Sampling

IGNORE_EOS, LEAST = "sampling.ignore_eos", "sampling.min_new_tokens"
NO_IDS = "it returned no token ids; engine=openai compares only texts"
Reason = Literal["eos", "length"]
Get = Callable[[str], Any]  # a server's page by its path: parsed JSON, or else text; None if there is no such page


class ServerError(Exception):
    """An answer cannot be counted; the message says why, in one line."""


@dataclass
class Counts:
    """Sums over an answer. steps: verifications, including those without a draft; None: not reported."""

    drafted: int
    accepted: int
    steps: int | None = None

    def to_sums(self) -> dict[str, int]:
        """Return what is known, by name."""
        steps = {} if self.steps is None else {"steps": self.steps}
        return {"drafted": self.drafted, "accepted": self.accepted, **steps}


@dataclass
class Answer:
    """What a server has reported about one answer so far; None: nothing.

    ids: None if it returns only text. drafted, accepted, committed: per step. counts: sums, if it reports no single steps.
    prefill_s: to the first token; decode_s: from there to the last; both by its own clock. prompt, cached: tokens of the prompt,
    and those of them that it did not read. tokens: of the answer. pieces: tokens of each event.
    """

    ids: list[int] | None = None
    text: str = ""
    reason: Reason | None = None
    drafted: list[int] | None = None
    accepted: list[int] | None = None
    committed: list[int] | None = None
    counts: Counts | None = None
    prefill_s: float | None = None
    decode_s: float | None = None
    prompt: int | None = None
    cached: int | None = None
    tokens: int | None = None
    pieces: list[int] = field(default_factory=list)

    @property
    def size(self) -> tuple[int, int]:
        """The tokens and characters so far."""
        return len(self.ids or ()), len(self.text)

    def add(self, ids: Sequence[int]) -> None:
        """Take in the token ids of one event."""
        self.ids = self.ids or []
        self.ids += ids
        self.pieces += [len(ids)] if ids else []

    def check(self, prompt: Sequence[int], most: int, vocabulary: int, stops: Sequence[int]) -> None:
        """Raise ServerError for an answer that does not match the request, or that skipped work."""
        size = self._check_tokens(most, vocabulary)
        self._check_end(stops)
        if self.cached:
            raise ServerError(f"it had {self.cached} prompt tokens cached; start it without a prompt cache")
        if self.prompt is not None and self.prompt != len(prompt):
            raise ServerError(f"it counted {self.prompt} prompt tokens; {len(prompt)} were sent")
        if self.reason is None:
            raise ServerError("its answer broke off")
        if self.reason == "length" and size < most:
            raise ServerError(f"it stopped after {size} tokens; {most} were requested: is its context too small?")

    def _check_end(self, stops: Sequence[int]) -> None:
        """Raise ServerError unless the answer ends at the first token at which the target's answers end."""
        if not self.ids or not stops:
            return
        if passed := [token for token in self.ids[:-1] if token in stops]:
            raise ServerError(f"it continued after token {passed[0]}, at which the target's answers end")
        if self.reason == "eos" and self.ids[-1] not in stops:
            raise ServerError(f"it ended at token {self.ids[-1]}, at which the target's answers do not end")

    def _check_tokens(self, most: int, vocabulary: int) -> int:
        """Return how many tokens there are."""
        size = self.tokens if self.ids is None else len(self.ids)
        if size is None or not size:
            raise ServerError("it returned no tokens" if size == 0 else "it did not say how many tokens it returned")
        if wrong := [token for token in self.ids or () if not 0 <= token < vocabulary]:
            raise ServerError(f"it returned token {wrong[0]}; the target has tokens 0 to {vocabulary - 1}")
        if size > most:
            raise ServerError(f"it returned {size} tokens; {most} were requested")
        if self.ids is not None and self.tokens not in (None, size):
            raise ServerError(f"it returned {size} token ids and counted {self.tokens}")
        return size


class Protocol(ABC):
    """One kind of server.

    path: where answers are requested. health: a page that exists once the server is ready. honours: the settings of how answers
    end that it knows. reads_gguf: it takes a model as a GGUF file. tells_times: of prefill and decoding, by its own clock.
    counters: its running totals of drafted and accepted tokens, by their names on the page /metrics, if it has any.
    """

    path: ClassVar[str]
    health: ClassVar[str] = "/health"
    honours: ClassVar[frozenset[str]] = frozenset()
    returns_ids: ClassVar[bool] = True
    reads_gguf: ClassVar[bool] = False
    tells_times: ClassVar[bool] = False
    counters: ClassVar[tuple[str, str] | None] = None

    @abstractmethod
    def build_request(self, prompt: list[int], sampling: Sampling, model: str | None, text: str | None) -> dict[str, Any]:
        """Return the body of a request. model: the name by which the server knows the target. text: of a prompt sent as text."""

    @abstractmethod
    def read(self, event: Mapping[str, Any], answer: Answer) -> None:
        """Take in one event. Raises KeyError, TypeError or ValueError for one that is not the protocol's."""

    def describe(self, get: Get) -> dict[str, Any]:
        """Return what run.json says about a server, from its own pages."""
        return {}

    def count_weights(self, get: Get) -> int | None:
        """Return how many weights the server's model has according to the server; None if it does not say."""
        return None

    def speculates(self, get: Get) -> bool | None:
        """Return whether the server drafts according to the server; None if it does not say."""
        return None


def iter_counters(page: str) -> Iterator[tuple[str, float]]:
    """Yield a page of metrics in Prometheus' format: names without labels, values of several labels one by one."""
    for line in page.splitlines():
        name, _, value = line.rpartition(" ")
        if name and not line.startswith("#"):
            try:
                yield name.partition("{")[0], float(value)
            except ValueError:
                continue


def count_drafts(page: Any, names: tuple[str, str]) -> tuple[int, int]:
    """Return the totals of drafted and accepted tokens. Raises ServerError if the page lacks one."""
    found: dict[str, float] = {}
    for name, value in iter_counters(page) if isinstance(page, str) else ():
        found[name] = found.get(name, 0) + value
    if missing := [name for name in names if name not in found]:
        raise ServerError(f"its page /metrics lacks {missing[0]}")
    return int(found[names[0]]), int(found[names[1]])


def fit_steps(answer: Answer) -> None:
    """Replace lists that leave out steps without a draft by sums, or by lists of all steps where the events show their order.

    Every event is one step, the first is the prefill's. Raises ServerError for counts that do not fit the tokens.
    """
    drafted, accepted = answer.drafted or [], answer.accepted or []
    left = sum(answer.pieces) - 1 - sum(kept + 1 for kept in accepted)
    cut = max(-left, 0)  # of the last step, by the end of the answer
    if len(drafted) != len(accepted) or cut > max(accepted[-1:], default=0):
        raise ServerError(
            f"its steps accepted {sum(accepted)} of {sum(drafted)} tokens, which does not give {sum(answer.pieces)} tokens"
        )
    steps = _place_steps(answer.pieces[1:], list(zip(drafted, accepted, strict=True)))
    answer.drafted = answer.accepted = answer.committed = None
    if steps is None:
        steps_told = max(len(drafted) + left, len(answer.pieces) - 1)  # events may be joined, and the last step may be cut
        answer.counts = Counts(sum(drafted), sum(accepted) - max(cut - 1, 0), steps_told)  # the bonus token goes first
        return
    answer.committed = answer.pieces[1:]
    answer.drafted = [draft for draft, _ in steps]
    answer.accepted = [min(kept, size) for (_, kept), size in zip(steps, answer.committed, strict=True)]


def _place_steps(pieces: list[int], counted: list[tuple[int, int]]) -> list[tuple[int, int]] | None:
    """Return (drafted, accepted) of every piece; None if one of one token could be either kind of step, or pieces were joined.

    The last piece may be shorter than its step, by the end of the answer.
    """
    placed: list[tuple[int, int]] = []
    rest = list(counted)
    while pieces:
        ones = next((i for i, size in enumerate(pieces) if size > 1), len(pieces))  # drafted in vain, or not at all
        vain = next((i for i, (_, kept) in enumerate(rest) if kept > 0), len(rest))
        if ones == len(pieces) and vain == len(rest) - 1:
            vain += 1  # the last step, cut to one token
        if vain not in (0, ones):
            return None
        placed += rest[:vain] or [(0, 0)] * ones
        pieces, rest = pieces[ones:], rest[vain:]
        if pieces:
            if not rest or not _fits(pieces[0], rest[0][1], is_last=len(pieces) == len(rest) == 1):
                return None
            placed.append(rest.pop(0))
            pieces = pieces[1:]
    return None if rest else placed


def _fits(piece: int, accepted: int, is_last: bool) -> bool:
    return piece == accepted + 1 or (is_last and piece <= accepted)
