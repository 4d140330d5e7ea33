"""The composition root: a resolved config becomes a suite, a target, methods, engines and a harness. Only here config is read."""

import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import huggingface_hub.utils as hub
import torch
import transformers.utils.logging as transformers_logging
from jinja2 import TemplateError
from omegaconf import DictConfig, OmegaConf

from specbench.build import built, check
from specbench.decoding.loop import Sampling
from specbench.engine.base import Engine
from specbench.errors import InputError, one_line
from specbench.harness import Harness, Target, Watcher
from specbench.hints import nearest
from specbench.metrics import BASELINE
from specbench.models import load_model, load_tokenizer
from specbench.prompts import render
from specbench.provenance import fingerprint, provenance
from specbench.records import RunDirectory
from specbench.report import write_summary
from specbench.schedule import Schedule, arms_of
from specbench.zoo.tokenizer import build_tokenizer
from tasks.question import Question, subsample
from tasks.suite import Suite

CONTEXTS = ("reference", "own")
LOADING = ("path", "revision", "weights", "config", "dtype", "device", "device_map", "trust_remote_code")
SAME = ("dtype", "suite_sha256", "target_sha256", "draft_sha256")  # of run.json: what an extension must share


def execute(config: DictConfig, watcher: Watcher) -> Path:
    """One job: check everything cheap, load, run what is missing; the run directory. Raises InputError."""
    quiet()
    check_values(config)
    run = directory_of(config)
    suite: Suite = built(config.suite)
    questions = questions_of(suite, [task.name for task in config.task.values()], config.limit, config.seed)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    drafters = {label: built(settings) for label, settings in config.method.items()}
    engines: dict[str, Engine] = {name: built(settings) for name, settings in config.engine.items()}
    target = target_of(config.target)
    check_prompts(questions, target)
    for engine in engines.values():
        engine.open(target.model, drafters)
    arms = arms_of(engines, [BASELINE, *(label for label in drafters if label != BASELINE)])
    write_heads(run, config, target, suite)
    sampling = Sampling(**config.sampling, stop_token_ids=target.model.eos_ids, seed=config.seed)
    schedule = Schedule(config.repeats, config.seed, config.context, sampling)
    Harness(run, target, suite, questions, arms, schedule, watcher).go()
    write_summary(run.path)
    return run.path


def quiet() -> None:
    """Only what specbench itself has to say reaches the terminal; of the libraries' bars only downloads'."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    hub.logging.set_verbosity_error()
    hub.enable_progress_bars()


def check_values(config: DictConfig) -> None:
    """Raises InputError for a setting of another type or range, and for a YAML that does not fit its class."""
    for name, (holds, expected) in _rules().items():
        value = OmegaConf.select(config, name)
        if not holds(value):
            given = "null" if value is None else value
            raise InputError(f"{name}={given}: expected {expected}")
    if config.context not in CONTEXTS:
        raise InputError(f"context={config.context}: expected {nearest(config.context, CONTEXTS)}")
    check(config.suite, "suite")
    for group in ("method", "engine"):
        for label, settings in config[group].items():
            check(settings, f"{group}.{label}")


def _rules() -> dict[str, tuple[Callable[[Any], bool], str]]:
    def whole(value: Any) -> bool:
        return type(value) is int and value >= 1

    return {
        "limit": (lambda value: value is None or whole(value), "a number of questions per task, at least 1, or null for all"),
        "repeats": (whole, "a whole number, at least 1"),
        "seed": (lambda value: type(value) is int, "a whole number"),
        "threads": (lambda value: value is None or whole(value), "a whole number, at least 1, or null for torch's choice"),
        "profile": (lambda value: type(value) is bool, "true or false"),
        "out": (lambda value: value is None or (isinstance(value, str) and value != ""), "a folder, or null"),
        "sampling.max_new_tokens": (whole, "a whole number, at least 1"),
        "sampling.temperature": (lambda value: value == 0, "0: only greedy decoding is built so far"),
        "target.name": (lambda value: isinstance(value, str), "a name"),
    }


def directory_of(config: DictConfig) -> RunDirectory:
    """The run directory, new or fit to be continued. Raises InputError when it holds another config's run."""
    run = RunDirectory(Path(config.out).expanduser() if config.out else _unused(config.target.name))
    if run.is_run():
        _check_same(run, plain_config(config))
    elif run.path.exists() and (not run.path.is_dir() or any(path.name[0] != "." for path in run.path.iterdir())):
        raise InputError(f"out={run.path}: expected a run's folder or an empty or new one")
    return run


def _unused(name: str) -> Path:
    stamp = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    numbered = (Path("results") / (f"{stamp}-{number}" if number > 1 else stamp) for number in count(1))
    return next(path for path in numbered if not path.exists())


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


def _check_same(run: RunDirectory, new: dict[str, Any]) -> None:
    """A run may be extended by more methods, further engines or repeats, never by another config."""
    old = run.config()
    for key in sorted((old.keys() | new.keys()) - {"repeats"}):
        before, now = old.get(key), new.get(key)
        if key in ("method", "engine") and isinstance(before, dict) and isinstance(now, dict):
            if key == "engine" and next(iter(before), None) != next(iter(now)):
                raise _another(run, "first engine", next(iter(before), None), next(iter(now)))
            shared = before.keys() & now.keys()
            before, now = ({name: value[name] for name in shared} for value in (before, now))
        if before != now:
            raise _another(run, *_difference(key, before, now))


def _difference(key: str, before: Any, now: Any) -> tuple[str, Any, Any]:
    """The first setting inside that differs: its dotted name and both values."""
    if not isinstance(before, dict) or not isinstance(now, dict):
        return key, before, now
    inner = next(name for name in [*before, *now] if before.get(name) != now.get(name))
    return _difference(f"{key}.{inner}", before.get(inner), now.get(inner))


def _another(run: RunDirectory, what: str, before: Any, now: Any) -> InputError:
    values = (f"{text[:77]}..." if len(text) > 80 else text for text in (str(before), str(now)))
    return InputError("out={} holds another run: its {} is {}, here {}; choose another out".format(run.path, what, *values))


def questions_of(suite: Suite, tasks: list[str], limit: int | None, seed: int) -> list[Question]:
    """The suite's questions of the chosen tasks. Raises InputError when there are none."""
    there = suite.questions()
    chosen = [question for question in there if question.task in tasks]
    if not chosen:
        has = nearest(tasks[0], list(dict.fromkeys(question.task for question in there)))
        raise InputError(f"suite {suite.name} has no question of task {', '.join(tasks)}; it has {has or 'none at all'}")
    return subsample(chosen, limit, seed)


def target_of(settings: DictConfig) -> Target:
    """Load the model and tokenizer that conf/target describes; what is cheap to refuse, before the weights."""
    quiet()
    plain = OmegaConf.to_container(settings, resolve=True)
    assert isinstance(plain, dict)
    shape, shapes = plain["shape"], plain.get("shapes") or {}
    if shape is not None and shape not in shapes:
        raise InputError(f"target.shape={shape}: {plain['name']} has {nearest(shape, list(shapes)) or 'no shapes'}")
    if plain["weights"] == "random":
        tokenizer, chat = build_tokenizer(), "template"
    else:
        tokenizer, chat = load_tokenizer(plain["path"], plain["revision"], plain["trust_remote_code"]), plain["format"]
    try:
        render(chat, [("Hello", None)], tokenizer)
    except TemplateError as error:
        raise InputError(f"the chat template of {plain['path']}: {one_line(error)}") from None
    model = load_model(**{key: plain[key] for key in LOADING}, shape=shapes[shape] if shape else None)
    return Target(plain["name"], model, tokenizer, chat)


def check_prompts(questions: list[Question], target: Target) -> None:
    """Raises InputError for another model's tokenizer and for a task none of whose first prompts fits the context."""
    shortest: dict[str, int] = {}
    for question in questions:
        ids = render(target.chat, [(question.turns[0], None)], target.tokenizer)
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


def write_heads(run: RunDirectory, config: DictConfig, target: Target, suite: Suite) -> None:
    """config.yaml and run.json, on disk before the first trial; of a run that goes on, what it must share is compared."""
    about = provenance(target.model.device) | {"dtype": str(target.model.dtype).removeprefix("torch.")} | _prints(config, suite)
    started = (run.path / "run.json").is_file()
    if started:
        _check_same_place(run, about)
    run.repair()
    run.write_config(_merged(run, plain_config(config)))
    if not started:
        run.write_provenance(about)


def _prints(config: DictConfig, suite: Suite) -> dict[str, Any]:
    models = {"target_sha256": config.target, "draft_sha256": config.target.draft or {}}
    read = {name: model for name, model in models.items() if model.get("path") and config.target.weights != "random"}
    prints = {name: fingerprint(Path(model["path"]).expanduser(), model.get("revision")) for name, model in read.items()}
    return {"suite_sha256": suite.fingerprint, **dict.fromkeys(models), **prints}


def _check_same_place(run: RunDirectory, now: dict[str, Any]) -> None:
    """Trials on two devices, or of two weights, cannot stand in one table."""
    before = run.provenance()
    for key in SAME:
        if before.get(key) not in (None, now[key]):
            raise _another(run, key, before.get(key), now[key])
    devices = [(about.get("device") or {}).get("name") for about in (before, now)]
    if devices[0] != devices[1]:
        raise _another(run, "device", *devices)


def _merged(run: RunDirectory, new: dict[str, Any]) -> dict[str, Any]:
    """What config.yaml says after an extension: every method and engine that ever ran here, the most repeats."""
    if not run.is_run():
        return new
    old = run.config()
    wider = {key: {**old.get(key, {}), **new[key]} for key in ("method", "engine")}
    return {**new, **wider, "repeats": max(old["repeats"], new["repeats"])}
