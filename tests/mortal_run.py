"""Runs a command's config in forked children of one process, some of them killed: a kill costs no second import of torch.

python -m tests.mortal_run PLAN.json: a list of {"overrides": […], "kill": null or [trials, seconds]}, one child after another.
A child is killed (SIGKILL) so many seconds after it has written so many trials. Prints one line a child: its exit status.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

from specbench.errors import InputError, refuse
from specbench.running.execute import execute
from specbench.setup.compose import compose_run
from tests.fake_engine import Quiet


def main(plan: list[dict]) -> None:
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
    except Exception:  # a child must not go on as its parent
        traceback.print_exc()
        return 70
    return 0


def _kill(child: int, trials: Path, more: int, seconds: float) -> None:
    """The child is not waited for before, so its number cannot have gone to another process."""
    begun = _lines(trials)
    while _lines(trials) < begun + more and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.001)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)


def _lines(trials: Path) -> int:
    return trials.read_bytes().count(b"\n") if trials.exists() else 0


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
