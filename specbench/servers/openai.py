"""Any server of OpenAI's /v1/completions: text out, timed by the client's clock, nothing about speculation.

The prompt is sent as token ids, or as text to a server that takes no ids (transformers serve).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from specbench.decoding.sampling import Sampling
from specbench.servers.fields import name_reason, read_usage
from specbench.servers.protocol import Answer, Get, Protocol

SEEDS = 1 << 31


class OpenAI(Protocol):
    """The usage comes with the last event, or in a separate event after it."""

    path = "/v1/completions"
    health = "/v1/models"
    returns_ids = False

    def build_request(self, prompt: list[int], sampling: Sampling, model: str | None, text: str | None) -> dict[str, Any]:
        body = {} if model is None else {"model": model}
        return body | {
            "prompt": prompt if text is None else text,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "seed": sampling.seed % SEEDS,
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    def read(self, event: Mapping[str, Any], answer: Answer) -> None:
        for choice in event["choices"]:
            answer.text += choice.get("text") or ""
            if choice.get("finish_reason"):
                answer.reason = name_reason(choice["finish_reason"])
        read_usage(event, answer)

    def describe(self, get: Get) -> dict[str, Any]:
        models = get("/v1/models")
        names = [model["id"] for model in models.get("data", ())] if isinstance(models, dict) else []
        return {"models": names}
