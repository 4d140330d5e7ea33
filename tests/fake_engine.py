"""A harness without a model: an engine with given answers, a tokenizer of bytes, and a suite that scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from specbench.decoding.loop import Generation
from specbench.decoding.sampling import Sampling
from specbench.engine.base import Engine
from specbench.models.chat import Chat
from specbench.models.target import Target
from specbench.records.run_directory import RunDirectory
from specbench.records.trial import Trial
from specbench.running.harness import Harness
from specbench.running.schedule import Arm, Schedule
from specbench.running.time_budget import TimeBudget
from tasks.question import Question
from tasks.suite import Suite

Answers = Callable[[str, list[int]], str]


class ByteTokenizer:
    """One token per byte, no special tokens."""

    bos_token_id = None

    def __call__(self, text: str) -> Any:
        return SimpleNamespace(input_ids=list(text.encode()))

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        return bytes(ids).decode()


class FakeEngine(Engine):
    """answers: (method, prompt) -> text, or raises. `log` holds methods and prompts as text, without warm-ups."""

    def __init__(self, answers: Answers, warm: Sequence[str] = ()) -> None:
        self.answers, self.warm = answers, warm
        self.log: list[tuple[str, str]] = []
        self.warm_ups: list[str] = []
        self.warming = True
        self.reserved = 0  # prompt tokens

    def open(self, target: Any, drafters: Any, batch: int = 1) -> None:
        pass

    def has(self, label: str) -> bool:
        return True

    def reserve(self, prompt_tokens: int, sampling: Sampling, batch: int = 1) -> None:
        self.reserved = max(self.reserved, prompt_tokens)

    def is_warm(self, label: str) -> bool:
        return label in self.warm

    def reset(self, label: str) -> None:
        self.warming = False
        self.log.append((label, "RESET"))

    def generate(self, label: str, prompt: list[int], sampling: Sampling) -> Generation:
        text = bytes(prompt).decode()
        self.warm_ups.append(label) if self.warming else self.log.append((label, text))
        ids = list(self.answers(label, prompt).encode())
        steps = len(ids) - 1
        zeros, ones = [0] * steps, [1] * steps
        return Generation(ids, "eos", zeros, ones, zeros, zeros, ones, prefill_s=0.25, decode_s=0.5)


class FakeSuite(Suite):
    name, fingerprint = "fake-suite", "0"

    def questions(self) -> list[Question]:
        return []

    def score(self, question: Question, turn: int, text: str) -> float | None:
        return float(text.startswith("autoregressive"))


class Quiet:
    """A watcher that only records its calls."""

    def __init__(self) -> None:
        self.began: list[tuple[int, int]] = []
        self.trials: list[Trial] = []

    def begin(self, run: Path, total: int, done: int) -> None:
        self.began.append((total, done))

    def set_run(self, run: Path) -> None:
        pass

    def announce(self, lines: list[str]) -> None:
        pass

    def show_status(self, what: str, timed: bool = False) -> None:
        pass

    def add_trial(self, trial: Trial) -> None:
        self.trials.append(trial)


QUESTIONS = [
    Question("q1", "mt_bench", "writing", ("first?", "second?")),
    Question("q2", "qa", "qa", ("only?",)),
    Question("q3", "qa", "qa", ("other?",)),
]
METHODS = ("autoregressive", "pld", "sps")


def harness(
    folder: Path,
    engine: FakeEngine,
    methods: Sequence[str] = METHODS,
    questions: Sequence[Question] = QUESTIONS,
    repeats: int = 2,
    seed: int = 0,
    context: str = "reference",
    budget: TimeBudget | None = None,
) -> Harness:
    """A harness on the fake engine, with an existing run directory."""
    run = RunDirectory(folder)
    if not run.is_run():
        run.write_config({})
        run.write_provenance({})
    model: Any = SimpleNamespace(device=torch.device("cpu"), context=1000)
    target = Target("fake", model, ByteTokenizer(), Chat("plain"))  # type: ignore[arg-type]
    arms = [Arm(method, method, engine) for method in methods]
    schedule = Schedule(repeats, seed, context, Sampling(max_new_tokens=16))
    return Harness(run, target, FakeSuite(), list(questions), arms, schedule, Quiet(), budget or TimeBudget())
