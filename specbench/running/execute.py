"""Execute one job: instantiate what its settings name, and fill a run directory."""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from specbench.analysis.budget import estimate_least, format_time
from specbench.analysis.summary import write_summary
from specbench.datastore.leakage import measure_leakage
from specbench.decoding.drafter import Drafter
from specbench.diagnose.roofline import describe_memory
from specbench.engine.base import Engine
from specbench.engine.served import Served
from specbench.errors import InputError, show_value
from specbench.machine.devices import count_default_threads, list_timed_devices, pick_device, release_memory
from specbench.machine.load import LoadMeter
from specbench.machine.locks import lock_devices, lock_run
from specbench.models.chat import Chat
from specbench.models.products import PRODUCTS
from specbench.models.target import Target
from specbench.records.attempts import select_whole
from specbench.records.run_directory import RunDirectory
from specbench.records.trial import BASELINE
from specbench.running.announce import Announcement, announce, count_missing
from specbench.running.baseline import measure_baselines, measure_rows
from specbench.running.checks import check_batch, check_prompts
from specbench.running.drafters import complete_drafters, prepare_drafters
from specbench.running.harness import Harness
from specbench.running.resume import check_same_run, choose_run_directory, open_run
from specbench.running.schedule import Arm, Schedule, build_arms
from specbench.running.servers import check_concurrency, check_served, load_wanted_target, prepare_engines, probe
from specbench.running.time_budget import TimeBudget
from specbench.setup import objects
from specbench.setup.instantiate import instantiate
from specbench.setup.provenance import collect_provenance
from specbench.setup.questions import open_suite, select_questions
from specbench.setup.settings import RunSettings, hide_home
from specbench.watch import Watcher
from tasks.question import Question
from tasks.suite import Suite


def execute(settings: RunSettings, watcher: Watcher) -> Path:
    """Check what is cheap to check, load, run the missing trials, and return the run directory. Raises InputError.

    Waits for the device before it loads anything: two processes would share its memory as well as its time.
    """
    objects.silence_libraries()
    objects.check_nodes(settings)
    run = choose_run_directory(settings.out, settings.target.name)
    watcher.show_status("reading the questions and the tokenizer")
    suite = open_suite(settings)
    questions = select_questions(settings, suite, settings.limit)
    default = count_default_threads()  # known before the first job of a sweep sets another number
    torch.set_num_threads(settings.threads or default)
    engines = _instantiate_engines(settings)
    _check_engines(engines, settings)
    check_served(engines, settings.method)
    check_batch(questions, settings.batch)
    check_concurrency(questions, settings.concurrency)
    tokenizer, chat = objects.load_target_tokenizer(settings.target)
    here = any(engine.loads_target for engine in engines.values())
    drafters: dict[str, Drafter] = prepare_drafters(settings, tokenizer) if here else dict.fromkeys(settings.method, Served())
    check_same_run(run, settings.recorded)
    watcher.announce([f"notice: {label} is left out: it needs {need}" for label, need in settings.left_out.items()])
    devices = list_timed_devices(settings.target.device, settings.target.device_map)
    with lock_devices(devices, partial(_say_waiting, watcher)), ExitStack() as stack:
        release_memory(pick_device(settings.target.device))  # of the previous job
        _recall_choices(run, engines)
        arms = build_arms(engines, _list_labels(settings))
        if any(engine.in_process for engine in engines.values()):
            say_needs(settings, run, questions, arms, tokenizer, chat, watcher)
        watcher.show_status("loading the target and the methods")
        drafters = complete_drafters(settings, drafters, tokenizer) if here else drafters
        target = load_wanted_target(settings.target, engines, _list_labels(settings))
        check_prompts(questions, target)
        prepare_engines(engines, _list_labels(settings), target, settings.target, run.path, stack)
        for engine in engines.values():
            engine.say = partial(watcher.show_status)  # type: ignore[method-assign]
            engine.open(target.model, drafters, settings.batch)
        sampling = objects.build_sampling(settings.sampling, target)
        schedule = Schedule(settings.repeats, settings.seed, settings.context, sampling, settings.batch, settings.concurrency)
        watcher.show_status("trying out the methods")
        probe(arms, target.render_first_prompt(questions[0]), sampling)
        with lock_run(run.path):
            watcher.set_run(run.path)
            info = _collect_run_info(settings, run, target, suite, questions, drafters, engines, watcher)
            open_run(run, settings.recorded, info)
            budget = TimeBudget(settings.budget_s or inf, settings.started)
            harness = Harness(run, target, suite, questions, arms, schedule, watcher, budget)
            harness.run_schedule()
            _note_budget(harness, settings)
            write_summary(run.path)
    return run.path


def _note_budget(harness: Harness, settings: RunSettings) -> None:
    """Write what the budget reached into run.json. Raises InputError if that is not one question, of which there is no report."""
    if not harness.budget.limited:
        return
    run, reached = harness.run, harness.budget.describe(harness.questions, settings.batch)
    run.write_provenance({**run.read_provenance(), "budget": reached})
    if not select_whole(run.read_trials()):
        ready, least = format_time(reached["ready_s"] or reached["used_s"]), format_time(estimate_least(reached))
        known = f", and {least} with a question of each task" if any(reached["question_s"].values()) else ""
        raise InputError(
            f"budget={settings.budget}: too short for one question: loading and warming up took {ready}{known};"
            f" the same command with a larger one resumes out={run.path}"
        )


def say_needs(
    settings: RunSettings,
    run: RunDirectory,
    questions: list[Question],
    arms: Sequence[Arm],
    tokenizer: PreTrainedTokenizerBase,
    chat: Chat,
    watcher: Watcher,
) -> None:
    """Say what the run needs, or what is left of it. Raise InputError for what cannot fit."""
    watcher.show_status("estimating memory and time")
    if announced := announce(settings, questions, [arm.label for arm in arms], tokenizer, chat):
        left = count_missing(run, questions, arms, settings.repeats)
        command = "the same command" if settings.out else f"the same command with out={run.path}"
        watcher.announce(announced.format_lines(left, f"Ctrl-C keeps what is done, {command} resumes"))
        announced.check()


def _recall_choices(run: RunDirectory, engines: Mapping[str, Engine]) -> None:
    """Let a resumed run go on with the forwards and products that it began with."""
    if (run.path / "run.json").is_file():
        before = run.read_provenance()
        PRODUCTS.recall(before.get("products") or {}, before.get("sums") or {})
        for engine in engines.values():
            engine.recall(before.get("forward") or {})


def _say_waiting(watcher: Watcher, message: str) -> None:
    watcher.announce([message])
    watcher.show_status("waiting for another run on this device")


def _collect_run_info(
    settings: RunSettings,
    run: RunDirectory,
    target: Target,
    suite: Suite,
    questions: list[Question],
    drafters: Mapping[str, Drafter],
    engines: Mapping[str, Engine],
    watcher: Watcher,
) -> dict[str, Any]:
    """Return what run.json says, including the rates of other baselines."""
    turns = sum(len(question.turns) for question in questions)
    info = collect_provenance(target.model.device) | {"turns": turns, "watched": LoadMeter(target.model.device).watched}
    info["suite"] = dict(settings.about_suite)
    info |= objects.collect_fingerprints(settings, target, suite, drafters)
    info["forward"] = {part: how for engine in engines.values() for part, how in engine.describe_forwards().items()}
    if servers := {name: about for name, engine in engines.items() if (about := engine.describe_servers())}:
        info["servers"] = servers
    info |= {"products": dict(PRODUCTS.first_rows), "sums": dict(PRODUCTS.sums)}
    watcher.show_status("searching the datastores for the questions")
    info["leakage"] = hide_home(measure_leakage(drafters, questions, target.tokenizer))
    if settings.check_baseline and not run.is_run() and any(engine.in_process for engine in engines.values()):
        watcher.show_status("timing the memory, and forwards by their rows", timed=True)
        info["memory"] = describe_memory(target.model)
        info["forward_ms"] = measure_rows(target, questions)
        info |= measure_baselines(settings, target, questions, watcher.show_status)
        release_memory(target.model.device)
    return info


def outline_run(settings: RunSettings) -> tuple[dict[str, int], list[str], int]:
    """Return a run's questions per task, labels and repeats, without loading a model. Raises InputError."""
    objects.check_nodes(settings)
    questions = select_questions(settings, open_suite(settings), settings.limit)
    counts = Counter(question.task for question in questions)
    arms = build_arms(_instantiate_engines(settings), _list_labels(settings))
    return dict(counts), [arm.label for arm in arms], settings.repeats


def plan_needs(settings: RunSettings) -> Announcement | None:
    """Return what a run that was not made yet needs, without loading a model. Raises InputError."""
    objects.silence_libraries()
    objects.check_nodes(settings)
    questions = select_questions(settings, open_suite(settings), settings.limit)
    torch.set_num_threads(settings.threads or count_default_threads())
    tokenizer, chat = objects.load_target_tokenizer(settings.target)
    engines = _instantiate_engines(settings)
    if not any(engine.in_process for engine in engines.values()):
        raise InputError(f"engine={next(iter(engines))}: it runs in processes of its own, whose needs are not known before")
    prepare_drafters(settings, tokenizer)
    labels = [arm.label for arm in build_arms(engines, _list_labels(settings))]
    return announce(settings, questions, labels, tokenizer, chat)


def _instantiate_engines(settings: RunSettings) -> dict[str, Engine]:
    return {name: instantiate(node, Engine, f"engine.{name}") for name, node in settings.engine.items()}


def _check_engines(engines: Mapping[str, Engine], settings: RunSettings) -> None:
    """Raise InputError for a method that the first engine lacks, and for a setting that any engine does not know.

    Another process's engine would load its model to tell which methods it has.
    """
    for name, engine in engines.items():
        if settings.batch > 1 and not engine.batches:
            raise InputError(f"batch={settings.batch}: engine {name} decodes one question at a time; expected batch=1")
        if settings.concurrency > 1 and not engine.serves:
            raise InputError(f"concurrency={settings.concurrency}: engine {name} is no server; expected concurrency=1")
        for setting, value in settings.sampling.endings.items():
            if setting not in engine.honours:
                raise InputError(f"{setting}={show_value(value)}: engine {name} does not know it; expected null")
    name, first = next(iter(engines.items()))
    if first.in_process:
        build_arms({name: first}, _list_labels(settings))


def _list_labels(settings: RunSettings) -> list[str]:
    return [BASELINE, *(label for label in settings.method if label != BASELINE)]
