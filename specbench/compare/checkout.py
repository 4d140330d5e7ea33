"""An engine that runs another checkout of specbench in a separate process, so that two versions take turns in one run."""

import json
import re
import subprocess
import sys
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from specbench import ROOT
from specbench.compare.worker import PROTOCOL
from specbench.decoding.drafter import Drafter
from specbench.decoding.language_model import LanguageModel
from specbench.decoding.loop import CapacityError, Generation
from specbench.decoding.sampling import Sampling
from specbench.engine.base import Engine
from specbench.errors import InputError

WORKER = "specbench.compare.worker"  # the same in every checkout, as is its protocol


class Checkout(Engine):
    """root: folder of the checkout; overrides: of its own configs; config_dir: an additional folder of configs for both."""

    in_process = False

    def __init__(self, root: str | None, overrides: Sequence[str], config_dir: str | None, threads: int | None) -> None:
        if root is None:
            raise InputError("engine.reference.root=null: expected a checkout of specbench, as specbench compare --against makes")
        self.root = ROOT / root
        self.overrides = list(overrides)
        self.config_dir = config_dir
        self.threads = threads
        check_protocol(self.root)

    @cached_property
    def _worker(self) -> subprocess.Popen[str]:
        """The process; it ends when this engine is deleted."""
        command = [sys.executable, "-m", WORKER]
        worker = subprocess.Popen(command, cwd=self.root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        weakref.finalize(self, _end_worker, worker)
        return worker

    @cached_property
    def _methods(self) -> dict[str, dict[str, Any]]:
        first = {"protocol": PROTOCOL, "overrides": self.overrides, "config_dir": self.config_dir, "threads": self.threads}
        methods: dict[str, dict[str, Any]] = self._ask(first)["methods"]
        return methods

    def _ask(self, call: Mapping[str, Any]) -> Any:
        pipes = self._worker
        assert pipes.stdin is not None and pipes.stdout is not None
        try:
            print(json.dumps(call), file=pipes.stdin, flush=True)
            answer = pipes.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise InputError(f"the checkout in {self.root} stopped; its output is above")
        result = json.loads(answer)
        if isinstance(result, dict) and "kind" in result:
            if result["kind"] == InputError.__name__:
                raise InputError(f"the other checkout, {self.root}: {result['error']}")
            raise (CapacityError if result["kind"] == CapacityError.__name__ else RuntimeError)(result["error"])
        return result

    def open(self, target: LanguageModel, drafters: Mapping[str, Drafter], batch: int = 1) -> None:
        """Do nothing: the checkout loads its own target and drafters."""

    def has(self, label: str) -> bool:
        return label in self._methods

    def generate(self, label: str, prompt: list[int], sampling: Sampling) -> Generation:
        return Generation(**self._ask({"do": "generate", "label": label, "prompt": prompt, "sampling": _describe(sampling)}))

    def reserve(self, prompt_tokens: int, sampling: Sampling, batch: int = 1) -> None:
        self._ask({"do": "reserve", "prompt_tokens": prompt_tokens, "sampling": _describe(sampling)})

    def reset(self, label: str) -> None:
        self._ask({"do": "reset", "label": label})

    def is_warm(self, label: str) -> bool:
        return bool(self._methods[label]["warm"])

    def get_kind(self, label: str) -> str:
        kind: str = self._methods[label]["kind"]
        return kind


def _describe(sampling: Sampling) -> dict[str, Any]:
    """Return the settings that every checkout of this protocol knows; the rest are defaults, since `honours` is empty."""
    return {key: value for key, value in asdict(sampling).items() if key not in ("min_new_tokens", "ending")}


def check_protocol(root: Path) -> None:
    """Raise InputError if the checkout's worker uses another protocol, or if it has no worker."""
    path = root.joinpath(*WORKER.split(".")).with_suffix(".py")
    match = re.search(r"^PROTOCOL = (\d+)", path.read_text(encoding="utf-8"), re.MULTILINE) if path.is_file() else None
    if match is None or int(match[1]) != PROTOCOL:
        what = f"uses protocol {match[1]}" if match else "is older than any protocol"
        raise InputError(f"the checkout in {root} {what} of compare --against; this one uses {PROTOCOL}: choose another commit")


def _end_worker(worker: subprocess.Popen[str]) -> None:
    worker.kill()
    worker.communicate()
