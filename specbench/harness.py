"""The schedule of a run: randomised blocks, repeats, warm-up, resume, records to disk. Knows no method and no task by name.

A block is one (repeat, question, turn): every arm runs it once, in an order drawn from the seed. Turn 2's block starts when
turn 1's is complete, and continues from autoregressive's answer (context=reference) or from each arm's own (context=own).
"""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from transformers import PreTrainedTokenizerBase

from specbench.decoding.loop import CapacityError, Generation, Sampling
from specbench.engine.base import Engine
from specbench.errors import InputError
from specbench.metrics import BASELINE
from specbench.prompts import answer_text, render, retokenised
from specbench.provenance import peak_memory_bytes, reset_peak_memory
from specbench.records import Prompt, RunDirectory, Trial, ids_sha256
from tasks.question import Question
from tasks.suite import Suite

WARM_UP_TOKENS = 24


@dataclass(frozen=True)
class Arm:
    """A method on an engine: `label` is its name in the run, `method` its name on that engine."""

    label: str
    method: str
    engine: Engine

    @property
    def state(self) -> str:
        return "warm" if self.engine.outlives(self.method) == "run" else "cold"


@dataclass(frozen=True)
class Schedule:
    repeats: int
    seed: int
    context: str  # reference | own


class Watcher(Protocol):
    """Who looks on while a run goes: the progress display."""

    def begin(self, total: int, done: int) -> None: ...

    def warming(self, label: str) -> None: ...

    def trial(self, trial: Trial) -> None: ...


class Harness:
    def __init__(
        self,
        run: RunDirectory,
        arms: list[Arm],
        suite: Suite,
        questions: list[Question],
        tokenizer: PreTrainedTokenizerBase,
        chat: str,
        sampling: Sampling,
        schedule: Schedule,
        device: torch.device,
    ) -> None:
        self.run, self.arms, self.suite, self.questions = run, arms, suite, questions
        self.tokenizer, self.chat, self.sampling, self.schedule, self.device = tokenizer, chat, sampling, schedule, device
        self.finished: dict[tuple, Trial] = {}

    def go(self, watcher: Watcher) -> None:
        """Run what is missing: trials already in the run directory are kept, except those of a warm arm's broken repeat."""
        self.finished = {trial.key: trial for trial in self.run.trials() if self._keeps(trial)}
        self._known_prompts = {(p.question_id, p.turn, p.method) for p in self.run.prompts()}
        turns = sum(len(question.turns) for question in self.questions)
        wanted = turns * self.schedule.repeats * len(self.arms)
        self._drop_broken_repeats(turns)
        watcher.begin(wanted, len(self.finished))
        if len(self.finished) < wanted:
            self._warm_up(watcher)
        for repeat in range(self.schedule.repeats):
            for arm in self.arms:
                arm.engine.reset(arm.method)
            for question in self.questions:
                for turn in range(len(question.turns)):
                    self._block(repeat, question, turn, watcher)

    def _keeps(self, trial: Trial) -> bool:
        ids = {question.id for question in self.questions}
        return trial.question_id in ids and trial.repeat < self.schedule.repeats and trial.method in {a.label for a in self.arms}

    def _drop_broken_repeats(self, turns: int) -> None:
        for arm in self.arms:
            if arm.state == "cold":
                continue
            for repeat in range(self.schedule.repeats):
                keys = [key for key in self.finished if key[0] == arm.label and key[1] == repeat]
                if len(keys) < turns:
                    for key in keys:
                        del self.finished[key]

    def _warm_up(self, watcher: Watcher) -> None:
        """Each task's longest first prompt through every arm, a few tokens each: the shapes and the memory of the run."""
        longest: dict[str, list[int]] = {}
        for question in self.questions:
            ids = render(self.chat, [(question.turns[0], None)], self.tokenizer)
            if len(ids) > len(longest.get(question.task, [])):
                longest[question.task] = ids
        short = Sampling(max_new_tokens=WARM_UP_TOKENS, stop_token_ids=self.sampling.stop_token_ids)
        for arm in self.arms:
            watcher.warming(arm.label)
            for ids in longest.values():
                try:
                    arm.engine.reserve(len(ids), self.sampling)
                    arm.engine.generate(arm.method, ids, short)
                except CapacityError:
                    continue  # its own trial will say so

    def _block(self, repeat: int, question: Question, turn: int, watcher: Watcher) -> None:
        order = list(self.arms)
        random.Random(f"{self.schedule.seed}/{repeat}/{question.id}/{turn}").shuffle(order)
        prompts = self._prompts(question, turn)
        for place, arm in enumerate(order):
            if (arm.label, repeat, question.id, turn) in self.finished:
                continue
            trial = self._trial(arm, repeat, question, turn, place, prompts(arm.label))
            self.run.append(trial)
            self.finished[trial.key] = trial
            watcher.trial(trial)

    def _prompts(self, question: Question, turn: int) -> Callable[[str], list[int] | str]:
        """Prompt ids per label, or why there are none."""
        own = self.schedule.context == "own" and turn > 0
        made: dict[str, list[int] | str] = {}

        def of(label: str) -> list[int] | str:
            source = label if own else BASELINE
            if source not in made:
                made[source] = self._prompt(question, turn, source)
                if isinstance(made[source], list):
                    self._note_prompt(question, turn, made[source], label if own else None)  # type: ignore[arg-type]
            return made[source]

        return of

    def _prompt(self, question: Question, turn: int, source: str) -> list[int] | str:
        said: list[tuple[str, str | None]] = []
        for before in range(turn):
            answered = self.finished[(source, 0, question.id, before)]
            if answered.output_ids is None:
                return f"turn {before + 1} of {source} failed, so turn {turn + 1} has no context"
            said.append((question.turns[before], answer_text(self.chat, self.tokenizer, answered.output_ids)))
        return render(self.chat, [*said, (question.turns[turn], None)], self.tokenizer)

    def _note_prompt(self, question: Question, turn: int, ids: list[int], method: str | None) -> None:
        if (question.id, turn, method) not in self._known_prompts:
            self._known_prompts.add((question.id, turn, method))
            self.run.append_prompt(
                Prompt(question_id=question.id, turn=turn, prompt_ids=ids, sha256=ids_sha256(ids), method=method)
            )

    def _trial(self, arm: Arm, repeat: int, question: Question, turn: int, place: int, prompt: list[int] | str) -> Trial:
        ids = prompt if isinstance(prompt, list) else []
        frame = {
            "run_id": self.run.name,
            "suite": self.suite.name,
            "task": question.task,
            "category": question.category,
            "question_id": question.id,
            "turn": turn,
            "context": self.schedule.context,
            "method": arm.label,
            "seed": self.schedule.seed,
            "repeat": repeat,
            "order": place,
            "state": arm.state,
            "prompt_tokens": len(ids),
            "prompt_sha256": ids_sha256(ids),
        }
        if isinstance(prompt, str):
            return Trial(**frame, new_tokens=0, finish_reason="error", error=prompt)
        reset_peak_memory(self.device)
        try:
            out = arm.engine.generate(arm.method, ids, self.sampling)
        except CapacityError as error:
            return Trial(**frame, new_tokens=0, finish_reason="capacity", error=str(error))
        except (RuntimeError, ValueError, IndexError) as error:
            return Trial(**frame, new_tokens=0, finish_reason="error", error=f"{type(error).__name__}: {error}")
        if repeat == 0:
            self._note_text(arm, question, turn, out)
        return Trial(**frame, **self._measured(arm, repeat, out))

    def _note_text(self, arm: Arm, question: Question, turn: int, out: Generation) -> None:
        text = answer_text(self.chat, self.tokenizer, out.output_ids)
        self.run.append_text(arm.label, question.id, turn, text, self.suite.score(question, turn, text))

    def _measured(self, arm: Arm, repeat: int, out: Generation) -> dict:
        seen = out.sees_steps
        text_count = None
        if arm.label == BASELINE:
            text_count = retokenised(self.tokenizer, answer_text(self.chat, self.tokenizer, out.output_ids))
        return {
            "new_tokens": len(out.output_ids),
            "finish_reason": out.finish_reason,
            "steps": out.steps if seen else None,
            "target_forwards": out.steps + 1 if seen else None,
            "draft_forwards": out.draft_forwards if seen else None,
            **{name: getattr(out, name) if seen else None for name in ("drafted", "nodes", "depth", "accepted", "committed")},
            "prefill_s": out.prefill_s if seen else None,
            "decode_s": out.decode_s,
            "draft_s": out.draft_s,
            "verify_s": out.verify_s,
            "output_ids": out.output_ids if repeat == 0 else None,
            "output_sha256": ids_sha256(out.output_ids),
            "retokenised": text_count,
            "peak_memory_bytes": peak_memory_bytes(self.device),
        }


def arms_of(engines: dict[str, Engine], labels: Iterable[str]) -> list[Arm]:
    """Every method on the first engine, and beside it (`method@engine`) on each further engine that has it.

    Raises InputError when the first engine lacks a method.
    """
    first, *others = engines
    missing = [label for label in labels if not engines[first].has(label)]
    if missing:
        raise InputError(f"engine {first} has no method {', '.join(missing)}")
    arms = [Arm(label, label, engines[first]) for label in labels]
    beside = [Arm(f"{label}@{name}", label, engines[name]) for name in others for label in labels if engines[name].has(label)]
    return arms + beside
