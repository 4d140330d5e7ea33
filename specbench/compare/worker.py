"""Runs in another checkout of specbench: its own loop and methods, asked over pipes by compare.checkout. One JSON object a line.

This file's text is what the other interpreter is given, so it imports nothing of its own package but what has long been there.
"""

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from specbench.build import built
from specbench.compose import composed
from specbench.decoding.sampling import Sampling
from specbench.engine.native import Native
from specbench.errors import InputError
from specbench.run import target_of

OUT = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # whatever prints


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    asked = json.loads(sys.stdin.readline())
    try:
        engine = _opened(asked)
    except InputError as error:
        return _failed(error)
    _tell({label: {"outlives": drafter.outlives, "kind": drafter.kind} for label, drafter in engine.drafters.items()})
    for line in sys.stdin:
        call = json.loads(line)
        name, given = call.pop("do"), call
        if "sampling" in given:
            given["sampling"] = Sampling(**{**given["sampling"], "stop_token_ids": engine.target.eos_ids})
        try:
            answer = getattr(engine, name)(**given)
        except Exception as error:
            _failed(error)
        else:
            _tell(dataclasses.asdict(answer) if name == "generate" else None)


def _opened(asked: dict[str, Any]) -> Native:
    config = composed(asked["overrides"], asked["config_dir"] and Path(asked["config_dir"]))
    if asked["threads"]:
        torch.set_num_threads(asked["threads"])
    target = target_of(config.target)
    engine = Native(profile=False)
    engine.open(target.model, {str(label): built(settings) for label, settings in config.method.items()})
    return engine


def _failed(error: Exception) -> None:
    _tell({"error": str(error), "kind": type(error).__name__})


def _tell(answer: object) -> None:
    print(json.dumps(answer), file=OUT, flush=True)


if __name__ == "__main__":
    main()
