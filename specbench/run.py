"""The composition root: a resolved config becomes a suite, a target, methods, engines and a harness. Only here config is read."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub.utils as hub
import torch
import transformers.utils.logging as transformers_logging
from jinja2 import TemplateError
from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedTokenizerBase

from specbench.baseline import Rates, other_dtypes, rates, ways
from specbench.build import built, check, check_types
from specbench.checkpoints import RANDOM
from specbench.continuation import open_run, run_directory
from specbench.datastore.leakage import check_tokenizers, leakage
from specbench.decoding.drafter import Drafter
from specbench.decoding.language_model import LanguageModel
from specbench.decoding.sampling import Sampling
from specbench.devices import pick_device, pick_dtype, release_memory, timed_devices
from specbench.engine.base import Engine
from specbench.errors import InputError, one_line
from specbench.fingerprints import fingerprint, method_code
from specbench.harness import Harness, Target, Watcher
from specbench.hints import nearest
from specbench.locks import WAITING, alone, sole_timer
from specbench.metrics import BASELINE
from specbench.models import load_model, load_tokenizer
from specbench.prompts import render
from specbench.provenance import provenance
from specbench.records import RunDirectory
from specbench.report import write_summary
from specbench.schedule import Schedule, arms_of
from specbench.skip_sets import SKIP_SET, check_shape
from tasks.question import Question, subsample
from tasks.suite import Suite

EMBEDDED = "specbench/zoo/target"
CONTEXTS = ("reference", "own")
Rule = tuple[Callable[[Any], bool], str]  # whether a setting's value will do, and what would
Rules = dict[str, Rule]  # by the setting's dotted name
LOADING = ("path", "revision", "weights", "config", "dtype", "device", "device_map", "trust_remote_code")


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


def quiet() -> None:
    """Only what specbench itself has to say reaches the terminal; of the libraries' bars only downloads'."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    hub.logging.set_verbosity_error()
    hub.enable_progress_bars()


def check_values(config: DictConfig, here: bool = True) -> None:
    """Raises InputError for a setting of another type or range, and for a YAML that does not fit its class.

    here: this machine is to run it, so that its device must be there.
    """
    check_rules(config, RULES)
    if config.context not in CONTEXTS:
        raise InputError(f"context={config.context}: expected {nearest(config.context, CONTEXTS)}")
    check_types(load_model, {key: config.target[key] for key in LOADING}, "target")
    if here:
        pick_dtype(config.target.dtype, pick_device(config.target.device))
    check(config.suite, "suite")
    for group in ("method", "engine"):
        for label, settings in config[group].items():
            check(settings, f"{group}.{label}")


def check_rules(config: DictConfig, rules: Rules) -> None:
    """Raises InputError for the first setting whose rule does not hold."""
    for name, (holds, expected) in rules.items():
        value = OmegaConf.select(config, name)
        if not holds(value):
            given = "null" if value is None else value
            raise InputError(f"{name}={given}: expected {expected}")


def _whole(value: Any) -> bool:
    return type(value) is int and value >= 1


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


WHOLE: Rule = (_whole, "a whole number, at least 1")
SHARED_RULES: Rules = {
    "limit": (lambda value: value is None or _whole(value), "a number of questions per task, at least 1, or null for all"),
    "seed": (lambda value: type(value) is int, "a whole number"),
    "out": (lambda value: value is None or (isinstance(value, str) and value != ""), "a folder, or null"),
    "target.name": (lambda value: isinstance(value, str), "a name"),
    "target.format": (lambda value: isinstance(value, str), "a chat format"),
    "target.shape": (lambda value: value is None or isinstance(value, str), "the name of a shape, or null"),
    "target.draft": (lambda value: value is None or isinstance(value, DictConfig), "a mapping with path, or null"),
}
RULES: Rules = SHARED_RULES | {
    "repeats": WHOLE,
    "threads": (lambda value: value is None or _whole(value), "a whole number, at least 1, or null for torch's choice"),
    "profile": (lambda value: type(value) is bool, "true or false"),
    "check_baseline": (lambda value: type(value) is bool, "true or false"),
    "sampling.max_new_tokens": WHOLE,
    "sampling.temperature": (
        lambda value: _number(value) and (value == 0 or 0.001 <= value <= 1000),
        "0 (greedy), or a number from 0.001 to 1000",
    ),
    "sampling.top_p": (lambda value: _number(value) and 0 < value <= 1, "a number above 0, at most 1 (all tokens)"),
    "sampling.top_k": (lambda value: type(value) is int and value >= 0, "a whole number, at least 0 (all tokens)"),
}


def plain_config(config: DictConfig) -> dict[str, Any]:
    """What config.yaml holds: everything but the run directory's own place; the home folder is written ~."""
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): _without_home(value) for key, value in plain.items() if key != "out"}


def _without_home(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_home(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_home(inner) for inner in value]
    home = f"{Path.home()}/"
    return f"~/{value.removeprefix(home)}" if isinstance(value, str) and value.startswith(home) else value


def questions_of(config: DictConfig, suite: Suite, limit: int | None) -> list[Question]:
    """The suite's questions of the config's tasks, at most `limit` of each. Raises InputError when there are none."""
    there, tasks = suite.questions(), [task.name for task in config.task.values()]
    chosen = [question for question in there if question.task in tasks]
    if not chosen:
        has = nearest(tasks[0], list(dict.fromkeys(question.task for question in there)))
        raise InputError(f"suite {suite.name} has no question of task {', '.join(tasks)}; it has {has or 'none at all'}")
    return subsample(chosen, limit, config.seed)


def planned(config: DictConfig) -> tuple[dict[str, int], list[str], int]:
    """Questions by task, methods (as METHOD@ENGINE too) and repeats of a run, without loading a model. Raises InputError."""
    check_values(config)
    counts = Counter(question.task for question in questions_of(config, built(config.suite), config.limit))
    return dict(counts), [arm.label for arm in arms_of(_engines(config), _labels(config))], config.repeats


def _engines(config: DictConfig) -> dict[str, Engine]:
    return {str(name): built(settings) for name, settings in config.engine.items()}


def _labels(config: DictConfig) -> list[str]:
    return [BASELINE, *(str(label) for label in config.method if label != BASELINE)]


def target_of(settings: DictConfig) -> Target:
    """Load the model and tokenizer that conf/target describes; what is cheap to refuse, before the weights."""
    plain: Any = OmegaConf.to_container(settings, resolve=True)
    shape, shapes = plain["shape"], plain.get("shapes") or {}
    if shape is not None and shape not in shapes:
        raise InputError(f"target.shape={shape}: {plain['name']} has {nearest(shape, list(shapes)) or 'no shapes'}")
    if shape is not None and shapes[shape] in (None, {}):
        raise InputError(f"target.shapes.{shape} is empty: expected sizes, such as {{hidden_size: 2048}}")
    tokenizer, chat = tokenizer_of(settings)
    return Target(plain["name"], _model(plain), tokenizer, chat)


def tokenizer_of(settings: DictConfig) -> tuple[PreTrainedTokenizerBase, str]:
    """The target's tokenizer and chat format, tried out. Raises InputError."""
    quiet()
    plain: Any = OmegaConf.to_container(settings, resolve=True)
    tokenizer, chat = _tokenizer(plain)
    try:
        render(chat, [("Hello", None)], tokenizer)
    except TemplateError as error:
        raise InputError(f"the chat template of {plain['path']}: {one_line(error)}") from None
    return tokenizer, chat


def _model(settings: dict[Any, Any], **changes: Any) -> LanguageModel:
    shape = settings["shape"]
    return load_model(**{key: settings[key] for key in LOADING} | changes, shape=settings["shapes"][shape] if shape else None)


def baseline_rates(config: DictConfig, target: Target, questions: list[Question]) -> Rates:
    """Autoregressive decoding by the run's own way, and by the others that this device and its memory allow."""
    plain: Any = OmegaConf.to_container(config.target, resolve=True)
    own, (first, *_) = target.model.dtype_name, config.engine
    models = {own: target.model}
    if plain["device_map"] is None:
        for other in other_dtypes(target.model, own):
            models[other] = _model(plain, dtype=other)
    shortest = min(map(target.first_prompt, questions), key=len)
    there = ways(models)
    return rates({(first, own): there.pop((first, own)), **there}, shortest) if (first, own) in there else []


def _tokenizer(settings: dict[Any, Any]) -> tuple[PreTrainedTokenizerBase, str]:
    """Tokenizer and chat format; random weights have none of their own and take the embedded ones."""
    if settings["weights"] == "random":
        if settings["config"] is None:
            raise InputError("target.weights=random needs target.config, the model's architecture")
        return load_tokenizer(EMBEDDED, None, False), "template"
    if settings["path"] is None:
        raise InputError("target.path=null: expected a hub id or a folder")
    return load_tokenizer(settings["path"], settings["revision"], settings["trust_remote_code"]), settings["format"]


def check_drafters(drafters: Mapping[str, Drafter], target: DictConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises InputError for a method that does not go with this target's tokenizer or shape; before weights are loaded."""
    check_tokenizers(drafters, tokenizer)
    skipping = [label for label, drafter in drafters.items() if any(part.learns == SKIP_SET for part in drafter.family())]
    check_shape(skipping, target)


def check_prompts(questions: list[Question], target: Target) -> None:
    """Raises InputError for another model's tokenizer and for a task none of whose first prompts fits the context."""
    shortest: dict[str, int] = {}
    for question in questions:
        ids = target.first_prompt(question)
        if max(ids) >= target.model.vocabulary:
            raise InputError(
                f"the tokenizer gives id {max(ids)}, but {target.name} has a vocabulary of {target.model.vocabulary}"
            )
        shortest[question.task] = min(len(ids), shortest.get(question.task, len(ids)))
    fitting = [task for task, length in shortest.items() if length < target.model.context]
    for task, length in shortest.items():
        if task not in fitting:
            reason = f"its shortest prompt has {length} tokens, the context of {target.name} {target.model.context}"
            raise InputError(f"task {task}: {reason}; tasks that fit: {', '.join(fitting) or 'none'}")


def prints(config: DictConfig, target: Target, suite: Suite, drafters: Mapping[str, Drafter]) -> dict[str, Any]:
    """What run.json adds to its provenance: the dtype and the fingerprints of data, weights and, by method, of its code."""
    models = {"target_sha256": config.target, "draft_sha256": config.target.draft or {}}
    read = {name: model for name, model in models.items() if model.get("path") and config.target.weights != "random"}
    found = {name: fingerprint(model["path"], model.get("revision")) for name, model in read.items()}
    return {
        **{"dtype": target.model.dtype_name, "suite_sha256": suite.fingerprint, **dict.fromkeys(models), **found},
        "codes": {str(label): method_code(settings) for label, settings in config.method.items()},
        "checkpoints": _checkpoints(drafters),
    }


def _checkpoints(drafters: Mapping[str, Drafter]) -> dict[str, str]:
    """By method, the fingerprints of what it loads besides draft models, such as trained heads or a skip set."""
    found: dict[str, list[str | None]] = {}
    for label, drafter in drafters.items():
        for part in drafter.family():
            checkpoint = getattr(part, "checkpoint", None)
            if checkpoint not in (None, RANDOM):
                place, _, revision = checkpoint.partition("@")
                found.setdefault(label, []).append(fingerprint(place, revision or None))
    return {label: ", ".join(map(str, prints)) for label, prints in found.items()}
