"""llama.cpp's own endpoint, /completion: ids in, ids out, and times that grow with every token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from specbench.decoding.sampling import Sampling
from specbench.servers.protocol import Answer, Get, Protocol

SEEDS = 1 << 32


class LlamaCpp(Protocol):
    """Tokens of one step carry the same time and counts, so that steps can be told apart; `draft_n` is absent before a draft.

    `prompt_ms` holds the first token, from which `predicted_ms` runs.
    """

    path = "/completion"
    reads_gguf = True
    tells_times = True

    def build_request(self, prompt: list[int], sampling: Sampling, model: str | None, text: str | None) -> dict[str, Any]:
        greedy = sampling.temperature == 0
        return {
            "prompt": prompt,
            "n_predict": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "samplers": ["temperature"] if greedy else ["temperature", "top_k", "top_p"],  # none of its other defaults
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "seed": sampling.seed % SEEDS,
            "return_tokens": True,
            "cache_prompt": False,
            "stream": True,
            "timings_per_token": True,
        }

    def read(self, event: Mapping[str, Any], answer: Answer) -> None:
        tokens, times = event["tokens"], event["timings"]
        answer.cached, answer.prompt = times["cache_n"], times["cache_n"] + times["prompt_n"]
        self._read_step(len(tokens), times, answer)
        answer.add(tokens)
        answer.text += event["content"]
        if event["stop"]:
            answer.reason = "length" if event["stop_type"] == "limit" else "eos"
            if answer.accepted and answer.committed:  # the end of an answer cuts its last step
                answer.accepted[-1] = min(answer.accepted[-1], answer.committed[-1])

    def _read_step(self, tokens: int, times: Mapping[str, Any], answer: Answer) -> None:
        drafted, accepted, decode_s = times.get("draft_n", 0), times.get("draft_n_accepted", 0), times["predicted_ms"] / 1e3
        if answer.drafted is None or answer.accepted is None or answer.committed is None:  # the prefill's token
            answer.prefill_s, answer.decode_s = times["prompt_ms"] / 1e3, 0.0 if tokens else decode_s
            answer.drafted, answer.accepted, answer.committed = [], [], []
            if tokens > 1:
                raise ValueError("tokens before the first step")
            return
        if tokens and answer.committed and decode_s == answer.decode_s:
            answer.committed[-1] += tokens
        elif tokens:
            answer.committed.append(tokens)
            answer.drafted.append(drafted - sum(answer.drafted))
            answer.accepted.append(accepted - sum(answer.accepted))
        answer.decode_s = decode_s

    def describe(self, get: Get) -> dict[str, Any]:
        about = get("/props") or {}
        return {name: about[name] for name in ("build_info", "total_slots") if name in about}

    def count_weights(self, get: Get) -> int | None:
        models = (get("/v1/models") or {}).get("data") or [{}]
        weights = (models[0].get("meta") or {}).get("n_params")
        return int(weights) if weights else None

    def speculates(self, get: Get) -> bool | None:
        slots = get("/slots")
        known = [slot["speculative"] for slot in slots if "speculative" in slot] if isinstance(slots, list) else []
        return any(known) if known else None
