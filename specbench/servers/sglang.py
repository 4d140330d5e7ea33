"""SGLang's own endpoint, /generate, which reports sums over an answer. Start it with --disable-radix-cache.

Read from its documentation and protocol, not run here. Its counters had other names before 0.5.6; all are known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from specbench.decoding.sampling import Sampling
from specbench.servers.fields import list_choices, name_reason
from specbench.servers.protocol import IGNORE_EOS, LEAST, Answer, Counts, Get, Protocol, ServerError

ACCEPTED = ("spec_num_correct_drafts", "spec_accepted_drafts", "spec_accept_token_num")
DRAFTED = ("spec_num_proposed_drafts", "spec_proposed_drafts", "spec_draft_token_num")
STEPS = "spec_verify_ct"


class Sglang(Protocol):
    """Every event holds all ids so far; the last one also holds sums."""

    path = "/generate"
    honours = frozenset({IGNORE_EOS, LEAST})

    def build_request(self, prompt: list[int], sampling: Sampling, model: str | None, text: str | None) -> dict[str, Any]:
        lengths = {"max_new_tokens": sampling.max_new_tokens, "min_new_tokens": sampling.min_new_tokens}
        settings = list_choices(sampling) | lengths
        return {"input_ids": prompt, "sampling_params": settings, "stream": True}

    def read(self, event: Mapping[str, Any], answer: Answer) -> None:
        about = event["meta_info"]
        answer.add(event["output_ids"][len(answer.ids or ()) :])
        answer.text = event["text"]
        answer.prompt, answer.cached = about["prompt_tokens"], about.get("cached_tokens") or 0
        answer.tokens = about["completion_tokens"]
        if about.get("finish_reason"):
            answer.reason = name_reason(about["finish_reason"]["type"])
            if answer.tokens == len(answer.ids or ()) + 1 and isinstance(about["finish_reason"].get("matched"), int):
                answer.add([about["finish_reason"]["matched"]])  # which it may leave out
            answer.counts = self._read_counts(about)

    def _read_counts(self, about: Mapping[str, Any]) -> Counts | None:
        if not any(name.startswith("spec_") for name in about):
            return None
        drafted, accepted = _find(about, DRAFTED), _find(about, ACCEPTED)
        return Counts(drafted, accepted, int(about[STEPS]))

    def describe(self, get: Get) -> dict[str, Any]:
        about = _get_info(get)
        return {name: about[name] for name in ("version", "speculative_algorithm", "disable_radix_cache") if name in about}

    def speculates(self, get: Get) -> bool | None:
        about = _get_info(get)
        return about["speculative_algorithm"] is not None if "speculative_algorithm" in about else None


def _get_info(get: Get) -> Any:
    """Return the server's page about itself, by its present or former name."""
    return get("/server_info") or get("/get_server_info") or {}


def _find(about: Mapping[str, Any], names: Sequence[str]) -> int:
    """Return a counter by the first of its names. Raises ServerError if it has none of them."""
    for name in names:
        if about.get(name) is not None:
            return int(about[name])
    raise ServerError(f"it speculates, but reports none of {', '.join(names)}")
