"""The embedded target with its methods, opened on the native engine, and first turns of the mini suite."""

from argparse import ArgumentTypeError
from dataclasses import dataclass
from pathlib import Path

from specbench.decoding.drafter import Drafter
from specbench.decoding.loop import Generation
from specbench.decoding.sampling import Sampling
from specbench.engine.native import Native
from specbench.errors import InputError
from specbench.machine.devices import pick_device, release_memory
from specbench.models.target import Target
from specbench.records.run_directory import RunDirectory
from specbench.running.checks import check_drafters
from specbench.setup.compose import compose_run
from specbench.setup.instantiate import instantiate
from specbench.setup.objects import instantiate_methods, load_target, select_questions


@dataclass(frozen=True)
class Opened:
    target: Target
    drafters: dict[str, Drafter]
    engine: Native
    prompts: list[list[int]]

    def generate(self, label: str, prompt: list[int], tokens: int = 256) -> Generation:
        sampling = Sampling(max_new_tokens=tokens, stop_token_ids=self.target.model.eos_ids)
        return self.engine.generate(label, prompt, sampling)


def numbers(text: str) -> list[int]:
    """Of an option, such as 1,16. Raises ArgumentTypeError."""
    found = [int(part) if part.isdecimal() else 0 for part in text.split(",")]
    if min(found) < 1:
        raise ArgumentTypeError(f"{text}: expected positive whole numbers, such as 1,16")
    return found


def whole(path: Path) -> Path:
    """The run, if all of its turns went well. Raises InputError."""
    trials = RunDirectory(path).read_trials()
    wrong = [trial for trial in trials if trial.error]
    if wrong:
        raise InputError(f"{path}: {len(wrong)} of {len(trials)} turns failed, the first of {wrong[0].method}: {wrong[0].error}")
    return path


def opened(*overrides: str, limit: int = 1) -> Opened:
    """limit: questions a task. The overrides choose methods, shape, dtype and device."""
    config = compose_run(["target=mini", "suite=mini", f"limit={limit}", *overrides])
    target = load_target(config.target)
    drafters = instantiate_methods(config.method)
    check_drafters(drafters, config.target, target.tokenizer)
    engine = Native(profile=False)
    engine.open(target.model, drafters)
    questions = select_questions(config, instantiate(config.suite), config.limit)
    return Opened(target, drafters, engine, [target.render_first_prompt(question) for question in questions])


def decoded(*overrides: str, limit: int = 1, tokens: int = 256) -> dict[str, list[Generation]]:
    """By method, its output on first turns, `limit` questions a task, at most `tokens` each; models before are let go."""
    release_memory(pick_device("auto"))
    there = opened(*overrides, limit=limit)
    return {label: [there.generate(label, prompt, tokens) for prompt in there.prompts] for label in there.drafters}
