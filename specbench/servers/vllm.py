"""vLLM's /v1/completions. Start it with --enable-per-request-metrics and --per-request-spec-decode-metrics detailed.

Read from its documentation and protocol (v0.32), not run here: shared by the tests' stand-in server.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from specbench.decoding.sampling import Sampling
from specbench.servers.fields import list_choices, name_reason, read_usage
from specbench.servers.protocol import (
    IGNORE_EOS,
    LEAST,
    NO_IDS,
    Answer,
    Counts,
    Get,
    Protocol,
    ServerError,
    fit_steps,
    iter_counters,
)

SEEDS = 1 << 63


class Vllm(Protocol):
    """One event per step; the last has the usage and, if the server was started with them, the metrics of the request."""

    path = "/v1/completions"
    honours = frozenset({IGNORE_EOS, LEAST})
    counters = ("vllm:spec_decode_num_draft_tokens_total", "vllm:spec_decode_num_accepted_tokens_total")

    def build_request(self, prompt: list[int], sampling: Sampling, model: str | None, text: str | None) -> dict[str, Any]:
        body = {} if model is None else {"model": model}
        return body | {
            "prompt": prompt,
            "max_tokens": sampling.max_new_tokens,
            **list_choices(sampling),
            "seed": sampling.seed % SEEDS,
            "min_tokens": sampling.min_new_tokens,
            "return_token_ids": True,
            "cache_salt": uuid4().hex,  # no request shares the prompt of another
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    def read(self, event: Mapping[str, Any], answer: Answer) -> None:
        for choice in event["choices"]:
            if choice.get("token_ids") is None:
                raise ServerError(NO_IDS)
            answer.add(choice["token_ids"])
            answer.text += choice["text"]
            if choice.get("finish_reason"):
                answer.reason = name_reason(choice["finish_reason"])
        read_usage(event, answer)
        if metrics := event.get("metrics"):
            self._read_metrics(metrics, answer)

    def _read_metrics(self, metrics: Mapping[str, Any], answer: Answer) -> None:
        if metrics.get("time_to_first_token_ms") is not None and metrics.get("generation_time_ms") is not None:
            answer.prefill_s = metrics["time_to_first_token_ms"] / 1e3
            answer.decode_s = metrics["generation_time_ms"] / 1e3
        if (counts := metrics.get("speculative_decoding")) is None:
            return
        answer.drafted, answer.accepted = counts.get("per_step_drafted"), counts.get("per_step_accepted")
        if answer.drafted is not None and answer.accepted is not None:
            return fit_steps(answer)
        answer.drafted = answer.accepted = None
        accepted = counts["num_accepted_draft_tokens"]
        steps = max(counts["num_spec_steps"], sum(answer.pieces) - 1 - accepted, len(answer.pieces) - 1)  # some may draft nothing
        answer.counts = Counts(counts["num_draft_tokens"], accepted, steps)

    def describe(self, get: Get) -> dict[str, Any]:
        return {"version": (get("/version") or {}).get("version")}

    def speculates(self, get: Get) -> bool | None:
        page = get("/metrics")
        if not isinstance(page, str):
            return None
        return any(name.startswith("vllm:spec_decode") for name, _ in iter_counters(page))
