"""Run a command's config in forked children of one process and kill some of them. torch is imported only once.

python -m tests.mortal_run PLAN.json: a list of {"overrides": […], "kill": null or [trials, seconds]}, one child after another.
A child is killed (SIGKILL) that many seconds after it has written that many trials. Prints the exit status of each child.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from specbench.errors import InputError, refuse
from specbench.running.execute import execute
from specbench.setup.compose import compose_run
from tests.fake_engine import Quiet
from tests.quiet import silence_machine


def main(plan: list[dict[str, Any]]) -> None:
    silence_machine()
    for step in plan:
        child = os.fork()
        if child == 0:
            os._exit(_run(step["overrides"]))
        if step["kill"]:
            _kill(child, Path(step["overrides"][-1].removeprefix("out=")) / "trials.jsonl", *step["kill"])
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _run(overrides: list[str]) -> int:
    try:
        execute(compose_run(overrides), Quiet())
    except InputError as error:
        return refuse(error)
    except Exception:  # a child must not continue as its parent
        traceback.print_exc()
        return 70
    return 0


def _kill(child: int, trials: Path, more: int, seconds: float) -> None:
    """The child has not been waited for, so its process id cannot have been reused."""
    begun = _lines(trials)
    while _lines(trials) < begun + more and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.001)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)


def _lines(trials: Path) -> int:
    return trials.read_bytes().count(b"\n") if trials.exists() else 0


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
