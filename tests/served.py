"""Engines of servers for tests."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import torch

from specbench.decoding.language_model import LanguageModel
from specbench.decoding.sampling import Sampling
from specbench.engine.served import Served
from specbench.engine.server import Server
from tests.stand_in import EOS, VOCABULARY

SAMPLING = Sampling(max_new_tokens=24, stop_token_ids=(EOS,))
PROMPT = [5, 6, 7, 8]


def build_server(protocol: Any, urls: dict[str, str], **changes: Any) -> Server:
    """An engine whose servers run already, unless `changes` say otherwise."""
    settings: dict[str, Any] = {
        "commands": {}, "values": {}, "model": None, "prompts": "ids", "patience_s": 20.0, "start_s": 20.0, "key": None,
        "certificates": None, "check_certificates": True, "concurrency": 1,
    }  # fmt: skip
    return Server(protocol=protocol, urls=urls or None, **{**settings, **changes})


def open_server(protocol: Any, urls: dict[str, str], **changes: Any) -> Server:
    """An open engine. A method's server alone has no baseline, which only a run needs."""
    engine = build_server(protocol, {"autoregressive": "http://127.0.0.1:1", **urls}, **changes)
    engine.urls = dict(urls)
    engine.decode = lambda ids: " ".join(map(str, ids))
    engine.open(describe_target(), {label: Served() for label in ("autoregressive", "sps", "pld") if engine.has(label)})
    return engine


def describe_target(context: int = 4096) -> LanguageModel:
    model = SimpleNamespace(parameters=lambda: [])
    return cast(LanguageModel, SimpleNamespace(model=model, vocabulary=VOCABULARY, context=context, device=torch.device("cpu")))
