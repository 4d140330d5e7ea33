"""python -m specbench.compare.worker: generate texts for another checkout of specbench, over pipes (see compare.checkout).

Each checkout runs its own worker, so only the name of this module and the protocol are fixed. Protocol 1: one JSON object per
line. The first call has `protocol, overrides, config_dir, threads`; its answer has `protocol` and `methods`, with `warm` and
`kind` of each. Every further call has `do` (generate, reserve or reset) and its arguments; its answer is a mapping or null, or
has `error` and `kind`.
"""

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, TextIO

import torch

from specbench.decoding.sampling import Sampling
from specbench.engine.native import Native
from specbench.errors import InputError
from specbench.setup.compose import compose_run
from specbench.setup.objects import instantiate_methods, load_target

PROTOCOL = 1  # compare.checkout reads it from the text of this file


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the calling process
    out = _claim_stdout()
    first = json.loads(sys.stdin.readline())
    try:
        engine = _open_engine(first)
    except InputError as error:
        return _send(out, _describe_failure(error))
    methods = {label: {"warm": engine.is_warm(label), "kind": engine.get_kind(label)} for label in engine.drafters}
    _send(out, {"protocol": PROTOCOL, "methods": methods})
    for line in sys.stdin:
        _send(out, _answer(engine, json.loads(line)))


def _claim_stdout() -> TextIO:
    """Return the pipe to the calling process; everything else that prints goes to stderr."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return out


def _open_engine(first: dict[str, Any]) -> Native:
    settings = compose_run(first["overrides"], first["config_dir"] and Path(first["config_dir"]))
    if first["threads"]:
        torch.set_num_threads(first["threads"])
    target = load_target(settings.target)
    engine = Native(profile=False, forward=(settings.engine.get("native") or {}).get("forward", "auto"))
    engine.open(target.model, instantiate_methods(settings.method))
    return engine


def _answer(engine: Native, call: dict[str, Any]) -> Any:
    name = call.pop("do")
    if "sampling" in call:
        call["sampling"] = Sampling(**{**call["sampling"], "stop_token_ids": engine.target.eos_ids})
    try:
        result = getattr(engine, name)(**call)
    except Exception as error:
        return _describe_failure(error)
    if name != "generate":
        return None
    return {field: value for field, value in dataclasses.asdict(result).items() if field != "error"}  # that is for failures


def _describe_failure(error: Exception) -> dict[str, str]:
    return {"error": str(error), "kind": type(error).__name__}


def _send(out: TextIO, answer: object) -> None:
    print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    main()
