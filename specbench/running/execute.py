"""One job: settings become a suite, a target, methods and engines, and a run directory fills."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from specbench.analysis.summary import write_summary
from specbench.datastore.leakage import leakage
from specbench.decoding.drafter import Drafter
from specbench.decoding.sampling import Sampling
from specbench.engine.base import Engine
from specbench.machine.devices import pick_device, release_memory, timed_devices
from specbench.machine.locks import WAITING, alone, sole_timer
from specbench.models.target import Target
from specbench.records.run_directory import RunDirectory
from specbench.records.trial import BASELINE
from specbench.running.baseline import baseline_rates
from specbench.running.checks import check_drafters, check_prompts
from specbench.running.harness import Harness
from specbench.running.resume import open_run, run_directory
from specbench.running.schedule import Schedule, arms_of
from specbench.setup.instantiate import built
from specbench.setup.objects import check_values, drafters_of, prints, questions_of, quiet, target_of, tokenizer_of
from specbench.setup.provenance import provenance
from specbench.setup.settings import RunSettings, without_home
from specbench.watch import Watcher
from tasks.question import Question
from tasks.suite import Suite


def execute(settings: RunSettings, watcher: Watcher) -> Path:
    """One job: check everything cheap, load, run what is missing; the run directory. Raises InputError.

    Waits for the device before anything is loaded: two processes would share its memory as well as its time.
    """
    quiet()
    check_values(settings)
    run = run_directory(settings.out, settings.target.name, settings.recorded)
    suite: Suite = built(settings.suite)
    questions = questions_of(settings, suite, settings.limit)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    engines = _engines(settings)
    tokenizer, _ = tokenizer_of(settings.target)
    waiting = partial(watcher.doing, WAITING, long=True)
    with sole_timer(timed_devices(settings.target.device, settings.target.device_map), waiting):
        release_memory(pick_device(settings.target.device))  # of a job before
        arms = arms_of(engines, _labels(settings))
        drafters = drafters_of(settings.method)
        check_drafters(drafters, settings.target, tokenizer)
        target = target_of(settings.target)
        check_prompts(questions, target)
        for engine in engines.values():
            engine.open(target.model, drafters)
        sampling = Sampling(**asdict(settings.sampling), stop_token_ids=target.model.eos_ids)
        schedule = Schedule(settings.repeats, settings.seed, settings.context, sampling)
        with alone(run.path):
            watcher.writes(run.path)
            open_run(run, settings.recorded, _about(settings, run, target, suite, questions, drafters, watcher))
            Harness(run, target, suite, questions, arms, schedule, watcher).go()
            write_summary(run.path)
    return run.path


def _about(
    settings: RunSettings,
    run: RunDirectory,
    target: Target,
    suite: Suite,
    questions: list[Question],
    drafters: Mapping[str, Drafter],
    watcher: Watcher,
) -> dict[str, Any]:
    """What run.json says, the baseline's other ways timed with it."""
    turns = sum(len(question.turns) for question in questions)
    about = provenance(target.model.device) | prints(settings, target, suite, drafters) | {"turns": turns}
    watcher.doing("looking for the questions in datastores")
    about["leakage"] = without_home(leakage(drafters, questions, target.tokenizer))
    if settings.check_baseline and not run.is_run():
        watcher.doing("timing the baseline in other ways", long=True)
        about["baseline"] = baseline_rates(settings, target, questions)
        release_memory(target.model.device)
    return about


def planned(settings: RunSettings) -> tuple[dict[str, int], list[str], int]:
    """Questions by task, methods (as METHOD@ENGINE too) and repeats of a run, without loading a model. Raises InputError."""
    check_values(settings)
    counts = Counter(question.task for question in questions_of(settings, built(settings.suite), settings.limit))
    return dict(counts), [arm.label for arm in arms_of(_engines(settings), _labels(settings))], settings.repeats


def _engines(settings: RunSettings) -> dict[str, Engine]:
    return {name: built(node) for name, node in settings.engine.items()}


def _labels(settings: RunSettings) -> list[str]:
    return [BASELINE, *(label for label in settings.method if label != BASELINE)]
