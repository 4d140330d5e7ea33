"""Runs in another checkout of specbench: its own loop and methods, asked over pipes by compare.checkout. One JSON object a line.

This file's text is what the other interpreter is given, so it imports nothing of its own package but what has long been there.
"""

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path

import torch

from specbench.build import built
from specbench.compose import composed
from specbench.decoding.sampling import Sampling
from specbench.engine.native import Native
from specbench.run import target_of

OUT = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # whatever prints


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    asked = json.loads(sys.stdin.readline())
    config = composed(asked["overrides"], asked["config_dir"] and Path(asked["config_dir"]))
    if asked["threads"]:
        torch.set_num_threads(asked["threads"])
    target = target_of(config.target)
    drafters = {str(label): built(settings) for label, settings in config.method.items()}
    engine = Native(profile=False)
    engine.open(target.model, drafters)
    _tell({label: {"outlives": drafter.outlives, "kind": drafter.kind} for label, drafter in drafters.items()})
    for line in sys.stdin:
        call = json.loads(line)
        name, given = call.pop("do"), call
        if "sampling" in given:
            given["sampling"] = Sampling(**{**given["sampling"], "stop_token_ids": target.model.eos_ids})
        try:
            answer = getattr(engine, name)(**given)
        except Exception as error:
            _tell({"error": str(error), "kind": type(error).__name__})
        else:
            _tell(dataclasses.asdict(answer) if name == "generate" else None)


def _tell(answer: object) -> None:
    print(json.dumps(answer), file=OUT, flush=True)


if __name__ == "__main__":
    main()
