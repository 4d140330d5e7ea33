"""The composition root: a resolved config becomes a suite, a target, methods, engines and a harness. Only here config is read."""

from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

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
from specbench.setup.objects import prints, questions_of, quiet, target_of, tokenizer_of
from specbench.setup.provenance import provenance
from specbench.setup.rules import _without_home, check_values, plain_config
from specbench.watch import Watcher
from tasks.question import Question
from tasks.suite import Suite


def execute(config: DictConfig, watcher: Watcher) -> Path:
    """One job: check everything cheap, load, run what is missing; the run directory. Raises InputError.

    Waits for the device before anything is loaded: two processes would share its memory as well as its time.
    """
    quiet()
    check_values(config)
    run = run_directory(config.out, config.target.name, plain_config(config))
    suite: Suite = built(config.suite)
    questions = questions_of(config, suite, config.limit)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    engines = _engines(config)
    tokenizer, _ = tokenizer_of(config.target)
    waiting = partial(watcher.doing, WAITING, long=True)
    with sole_timer(timed_devices(config.target.device, config.target.device_map), waiting):
        release_memory(pick_device(config.target.device))  # of a job before
        arms = arms_of(engines, _labels(config))
        drafters = {label: built(settings) for label, settings in config.method.items()}
        check_drafters(drafters, config.target, tokenizer)
        target = target_of(config.target)
        check_prompts(questions, target)
        for engine in engines.values():
            engine.open(target.model, drafters)
        sampling = Sampling(**config.sampling, stop_token_ids=target.model.eos_ids)
        schedule = Schedule(config.repeats, config.seed, config.context, sampling)
        with alone(run):
            watcher.writes(run.path)
            open_run(run, plain_config(config), _about(config, run, target, suite, questions, drafters, watcher))
            Harness(run, target, suite, questions, arms, schedule, watcher).go()
            write_summary(run.path)
    return run.path


def _about(
    config: DictConfig,
    run: RunDirectory,
    target: Target,
    suite: Suite,
    questions: list[Question],
    drafters: Mapping[str, Drafter],
    watcher: Watcher,
) -> dict[str, Any]:
    """What run.json says, the baseline's other ways timed with it."""
    turns = sum(len(question.turns) for question in questions)
    about = provenance(target.model.device) | prints(config, target, suite, drafters) | {"turns": turns}
    watcher.doing("looking for the questions in datastores")
    about["leakage"] = _without_home(leakage(drafters, questions, target.tokenizer))
    if config.check_baseline and not run.is_run():
        watcher.doing("timing the baseline in other ways", long=True)
        about["baseline"] = baseline_rates(config, target, questions)
        release_memory(target.model.device)
    return about


def planned(config: DictConfig) -> tuple[dict[str, int], list[str], int]:
    """Questions by task, methods (as METHOD@ENGINE too) and repeats of a run, without loading a model. Raises InputError."""
    check_values(config)
    counts = Counter(question.task for question in questions_of(config, built(config.suite), config.limit))
    return dict(counts), [arm.label for arm in arms_of(_engines(config), _labels(config))], config.repeats


def _engines(config: DictConfig) -> dict[str, Engine]:
    return {str(name): built(settings) for name, settings in config.engine.items()}


def _labels(config: DictConfig) -> list[str]:
    return [BASELINE, *(str(label) for label in config.method if label != BASELINE)]
