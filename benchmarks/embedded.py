"""The embedded target with its methods on the native engine, and first turns of the mini suite; helpers of all benchmarks."""

import sys
from argparse import ArgumentTypeError
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pandas as pd
from rich.table import Table

from specbench.cli.last_line import explain
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
from specbench.setup.objects import instantiate_methods, load_target
from specbench.setup.questions import open_suite, select_questions


@dataclass(frozen=True)
class Bench:
    """A loaded target, its methods and prompts."""

    target: Target
    drafters: dict[str, Drafter]
    engine: Native
    prompts: list[list[int]]

    def generate(self, label: str, prompt: list[int], tokens: int = 256) -> Generation:
        sampling = Sampling(max_new_tokens=tokens, stop_token_ids=self.target.model.eos_ids)
        return self.engine.generate(label, prompt, sampling)


def parse_numbers(text: str) -> list[int]:
    """Parse an option such as 1,16. Raises ArgumentTypeError."""
    numbers = [int(part) if part.isdecimal() else 0 for part in text.split(",")]
    if min(numbers) < 1:
        raise ArgumentTypeError(f"{text}: expected positive whole numbers, such as 1,16")
    return numbers


def check_complete(path: Path) -> Path:
    """Return the run. Raises InputError if a turn failed."""
    trials = RunDirectory(path).read_trials()
    failed = [trial for trial in trials if trial.error]
    if failed:
        first = failed[0]
        raise InputError(f"{path}: {len(failed)} of {len(trials)} turns failed, the first of {first.method}: {first.error}")
    return path


def build_table(frame: pd.DataFrame, title: str | None = None) -> Table:
    """Build a table of all rows and columns, with four digits after the point."""
    table = Table(*(str(column).replace("_", " ") for column in frame.columns), title=title)
    for row in frame.itertuples(index=False):
        table.add_row(*(f"{value:.4f}" if isinstance(value, float) else str(value) for value in row))
    return table


def exit_with(main: Callable[[], int]) -> NoReturn:
    """Run a script and exit with its status; whatever escapes it is one line, as on the command line."""
    try:
        sys.exit(main())
    except (Exception, KeyboardInterrupt) as error:
        sys.exit(explain(error))


def load_bench(*overrides: str, limit: int = 1, batch: int = 1) -> Bench:
    """Load what the overrides choose: methods, shape, dtype and device. limit: questions per task."""
    config = compose_run(["target=mini", "suite=mini", f"limit={limit}", *overrides])
    target = load_target(config.target)
    drafters = instantiate_methods(config.method)
    check_drafters(drafters, config.target, target.tokenizer)
    engine = Native(profile=False, forward=config.engine["native"]["forward"])
    engine.open(target.model, drafters, batch)
    questions = select_questions(config, open_suite(config), config.limit)
    return Bench(target, drafters, engine, [target.render_first_prompt(question) for question in questions])


def decode_questions(*overrides: str, limit: int = 1, tokens: int = 256) -> dict[str, list[Generation]]:
    """Return by method its outputs on first turns, `limit` questions per task, at most `tokens` each."""
    release_memory(pick_device("auto"))  # of earlier models
    bench = load_bench(*overrides, limit=limit)
    return {label: [bench.generate(label, prompt, tokens) for prompt in bench.prompts] for label in bench.drafters}
