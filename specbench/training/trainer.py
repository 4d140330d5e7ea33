"""One resumable training loop for every drafter; accelerate handles precision and devices."""

import json
import math
import shutil
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from specbench.decoding.language_model import LanguageModel
from specbench.drafters.lesson import Lesson
from specbench.drafters.network import DraftNetwork
from specbench.errors import InputError
from specbench.models.texts import Text
from specbench.records.files import write_atomic
from specbench.training.memory import check_memory
from specbench.training.steps import Batches, TrainingPlan, build_lesson, build_optimizers, list_trained

WARM_UP = 0.05  # of all steps
CLIP = 1.0  # of the gradient's norm
STATE, LOG = "state", "training_log.jsonl"


class _LossModule(nn.Module):
    """The loss as a forward, so that accelerate synchronises gradients across devices."""

    def __init__(self, network: DraftNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, lesson: Lesson) -> tuple[Tensor, Tensor]:
        result = self.network.compute_loss(lesson)
        return result.loss, torch.stack(result.right)


class Trainer:
    """Trains a network; `out` holds its log and the state from which training resumes."""

    def __init__(self, network: DraftNetwork, target: LanguageModel, plan: TrainingPlan, out: Path) -> None:
        self.network, self.target = network, target
        self.plan, self.out = plan, out
        self.accelerator = Accelerator(
            mixed_precision=plan.precision, gradient_accumulation_steps=plan.accumulate, cpu=target.device.type == "cpu"
        )
        self._done, self._seen = 0, 0  # steps, tokens
        self._seconds = 0.0
        self._recent: deque[Tensor] = deque(maxlen=plan.save_every)  # loss and shares of the last steps

    def fit(
        self,
        texts: list[Text],
        held_out: list[Text],
        watch: Callable[[int, int, dict[str, Any]], None],
        announce: Callable[[str], None],
    ) -> None:
        """Train to the end of the plan. watch(step, steps, row): `row` is the latest log line, written with each saved state.

        announce: called with the memory that training needs, where that can be known. Raises InputError if it does not fit.
        """
        lessons, tests = (Batches(part, self.plan.batch_tokens, self.target.context) for part in (texts, held_out))
        kind, config = type(self.network), self.network.config
        if need := check_memory(kind, config, self.target, self.plan, lessons.list_largest(), made=True):
            announce(need)
        batches_per_step = self.plan.accumulate * self.accelerator.num_processes
        steps = max(1, math.ceil(self.plan.epochs * len(lessons) / batches_per_step))
        self._trained = list_trained(self.network)
        optimizers = build_optimizers(self.network, self.plan)
        self._schedules = [LambdaLR(optimizer, lambda step: _schedule_rate(step / steps)) for optimizer in optimizers]
        self._loss, *self._optimizers = self.accelerator.prepare(_LossModule(self.network), *optimizers)
        self._resume()
        row: dict[str, Any] = {}
        while self._done < steps:
            begun = time.monotonic()
            self._recent.append(self._run_step(lessons))
            self._done += 1
            self._seconds += time.monotonic() - begun
            if self._done % self.plan.save_every == 0 or self._done == steps:
                row = self._build_log_row(tests)
                self._save(row)
            watch(self._done, steps, row)

    def _run_step(self, lessons: Batches) -> Tensor:
        """Take one optimizer step; return loss and accuracies of its last forward, (1 + depths,)."""
        for part in range(self.plan.accumulate):
            lesson = build_lesson(self._take_batch(lessons, part), self.target, self.network.taps)
            with self.accelerator.accumulate(self._loss):
                loss, right = self._loss(lesson)
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self._trained, CLIP)
                for optimizer in self._optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
            self._seen += lesson.ids.numel() * self.accelerator.num_processes
        for schedule in self._schedules:
            schedule.step()
        return torch.cat([loss.detach()[None], right])

    def _take_batch(self, lessons: Batches, part: int) -> list[Text]:
        """Return this process's batch. It depends only on the step, so that a resumed training sees the same batches."""
        index = (self._done * self.plan.accumulate + part) * self.accelerator.num_processes + self.accelerator.process_index
        epoch, place = divmod(index, len(lessons))
        return lessons.get_batch(place, self.plan.seed + epoch)

    @torch.no_grad()
    def _build_log_row(self, tests: Batches) -> dict[str, Any]:
        """Return training means over the last steps, and held-out means over all batches, weighted by answer tokens."""
        trained = torch.stack(list(self._recent)).mean(dim=0).tolist()
        self.network.eval()
        results, weights = [], []
        for texts in tests.batches:
            lesson = build_lesson(texts, self.target, self.network.taps)
            loss, right = self._loss(lesson)
            results.append(torch.cat([loss[None], right]))
            weights.append(lesson.wanted.sum())
        self.network.train()
        tokens = torch.stack(weights).double()
        held_out = (torch.stack(results).T.double() @ tokens / tokens.sum()).tolist()
        return {
            "step": self._done,
            "tokens": self._seen,
            "seconds": round(self._seconds, 1),
            "loss": round(trained[0], 4),
            "right": [round(share, 4) for share in trained[1:]],
            "held_out_loss": round(held_out[0], 4),
            "held_out_right": [round(share, 4) for share in held_out[1:]],
        }

    def _resume(self) -> None:
        """Load the last saved state, if there is one, and cut the log to its step."""
        saved = self.out / STATE
        if not (saved / "progress.json").is_file():
            return
        progress = json.loads((saved / "progress.json").read_text())
        processes = self.accelerator.num_processes
        if progress["processes"] != processes:
            raise InputError(f"out={self.out}: started with {progress['processes']} processes and cannot resume with {processes}")
        self.accelerator.load_state(str(saved / progress["folder"]))
        states = torch.load(saved / progress["folder"] / "schedules.pt", weights_only=True)
        for schedule, state in zip(self._schedules, states, strict=True):
            schedule.load_state_dict(state)
        self._done, self._seen, self._seconds = progress["done"], progress["seen"], progress["seconds"]
        if self.accelerator.is_main_process:
            rows = [line for line in (self.out / LOG).read_text().splitlines() if json.loads(line)["step"] <= self._done]
            (self.out / LOG).write_text("".join(f"{line}\n" for line in rows))

    def _save(self, row: dict[str, Any]) -> None:
        """Write a new folder, then the file that names it: a kill in between leaves the previous state valid."""
        saved, name = self.out / STATE, f"step-{self._done}"
        self.accelerator.save_state(str(saved / name), safe_serialization=False)  # all processes: each has its own random state
        self.accelerator.wait_for_everyone()
        if not self.accelerator.is_main_process:
            return
        with (self.out / LOG).open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(row) + "\n")
        torch.save([schedule.state_dict() for schedule in self._schedules], saved / name / "schedules.pt")
        progress = {
            "folder": name,
            "processes": self.accelerator.num_processes,
            "done": self._done,
            "seen": self._seen,
            "seconds": self._seconds,
        }
        write_atomic(saved / "progress.json", json.dumps(progress))
        for folder in saved.glob("step-*"):
            if folder.name != name:
                shutil.rmtree(folder)


def count_saved_steps(out: Path) -> int:
    """Return the steps after which a training in `out` resumes."""
    progress = out / STATE / "progress.json"
    return int(json.loads(progress.read_text())["done"]) if progress.is_file() else 0


def _schedule_rate(progress: float) -> float:
    """Return the factor on the peak rate: a linear rise, then a cosine down to a hundredth."""
    if progress < WARM_UP:
        return (progress + 1e-3) / WARM_UP
    return max(0.01, 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP))))
