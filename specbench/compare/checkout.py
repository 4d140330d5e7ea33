"""An engine that is another checkout of specbench, in a process of its own: two versions take turns in one run."""

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

WORKER = "specbench.compare.worker"  # of every checkout: this name and its protocol stay


class Checkout(Engine):
    """root: the checkout's folder, below ROOT or anywhere; overrides: of its own configs, which say what it loads.

    config_dir: a further folder of configs, the same for both versions.
    """

    in_process = False

    def __init__(self, root: str | None, overrides: Sequence[str], config_dir: str | None, threads: int | None) -> None:
        if root is None:
            raise InputError(
                "engine.reference.root=null: expected a checkout of specbench; specbench compare --against makes one"
            )
        self.root = ROOT / root
        self.overrides = list(overrides)
        self.config_dir = config_dir
        self.threads = threads
        check_protocol(self.root)

    @cached_property
    def _worker(self) -> subprocess.Popen[str]:
        """It ends with the pipe that it reads from, and that with this engine."""
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
            raise InputError(f"the checkout in {self.root} stopped; what it said stands above")
        found = json.loads(answer)
        if isinstance(found, dict) and "error" in found:
            if found["kind"] == InputError.__name__:
                raise InputError(f"the other checkout, {self.root}: {found['error']}")
            raise (CapacityError if found["kind"] == CapacityError.__name__ else RuntimeError)(found["error"])
        return found

    def open(self, target: LanguageModel, drafters: Mapping[str, Drafter]) -> None:
        """It has loaded its own."""

    def has(self, label: str) -> bool:
        return label in self._methods

    def generate(self, label: str, prompt: list[int], sampling: Sampling) -> Generation:
        return Generation(**self._ask({"do": "generate", "label": label, "prompt": prompt, "sampling": asdict(sampling)}))

    def reserve(self, prompt_tokens: int, sampling: Sampling) -> None:
        self._ask({"do": "reserve", "prompt_tokens": prompt_tokens, "sampling": asdict(sampling)})

    def reset(self, label: str) -> None:
        self._ask({"do": "reset", "label": label})

    def is_warm(self, label: str) -> bool:
        return bool(self._methods[label]["warm"])

    def get_kind(self, label: str) -> str:
        kind: str = self._methods[label]["kind"]
        return kind


def check_protocol(root: Path) -> None:
    """Raises InputError for a checkout whose worker speaks another protocol, or that has none."""
    path = root.joinpath(*WORKER.split(".")).with_suffix(".py")
    spoken = re.search(r"^PROTOCOL = (\d+)", path.read_text(encoding="utf-8"), re.MULTILINE) if path.is_file() else None
    if spoken is None or int(spoken[1]) != PROTOCOL:
        which = f"speaks protocol {spoken[1]}" if spoken else "is older than any protocol"
        raise InputError(f"the checkout in {root} {which} of compare --against; this one speaks {PROTOCOL}: take another commit")


def _end_worker(worker: subprocess.Popen[str]) -> None:
    worker.kill()
    worker.communicate()
