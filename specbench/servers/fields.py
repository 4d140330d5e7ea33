"""Fields shared by several kinds of server: how tokens are chosen, why an answer ended, and how many tokens it has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from specbench.decoding.sampling import Sampling
from specbench.servers.protocol import Answer, Reason


def list_choices(sampling: Sampling) -> dict[str, Any]:
    """Return how tokens are chosen and which of them end an answer, in the fields of vLLM and SGLang.

    What the model's generation config might switch on is sent as off.
    """
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop_token_ids": list(sampling.stop_token_ids),
        "ignore_eos": not sampling.stop_token_ids,
    }


def name_reason(said: str) -> Reason:
    """Return why an answer ended, from `length` or another word of a server."""
    return "length" if said == "length" else "eos"


def read_usage(event: Mapping[str, Any], answer: Answer) -> None:
    """Add the token counts that an event of OpenAI's protocol may hold."""
    if usage := event.get("usage"):
        answer.prompt, answer.tokens = usage["prompt_tokens"], usage["completion_tokens"]
        answer.cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
