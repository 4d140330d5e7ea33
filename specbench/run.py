"""The composition root: a resolved config becomes a suite, a target, methods, engines and a harness. Only here config is read."""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedTokenizerBase

from specbench.decoding.language_model import LanguageModel
from specbench.decoding.loop import Sampling
from specbench.engine.base import Engine
from specbench.errors import InputError
from specbench.harness import BASELINE, Harness, Schedule, Watcher, arms_of
from specbench.hints import nearest
from specbench.models import load_model, load_tokenizer
from specbench.prompts import render
from specbench.provenance import fingerprint, provenance
from specbench.records import RunDirectory
from specbench.report import write_summary
from specbench.zoo.tokenizer import build_tokenizer
from tasks.question import Question, subsample
from tasks.suite import Suite

CONTEXTS = ("reference", "own")


@dataclass(frozen=True)
class Target:
    name: str
    model: LanguageModel
    tokenizer: PreTrainedTokenizerBase
    chat: str


def built(node: Any) -> Any:
    """Instantiate a node of the config; what the constructor says of bad input comes out as itself, in one line."""
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        place = node.get("_target_", "") if isinstance(node, DictConfig) else ""
        reason = str(error.__cause__ or error).splitlines()[0]
        raise InputError(f"{place}: {reason}") from None


def target_of(settings: DictConfig) -> Target:
    """Load the model and tokenizer that conf/target describes."""
    plain: dict[str, Any] = OmegaConf.to_container(settings, resolve=True)  # type: ignore[assignment]
    name, shape = plain["name"], plain["shape"]
    shapes = plain.get("shapes") or {}
    if shape is not None and shape not in shapes:
        raise InputError(f"target.shape={shape}: {name} has {nearest(shape, list(shapes)) or 'no shapes'}")
    loading = ("path", "revision", "weights", "config", "dtype", "device", "device_map", "trust_remote_code")
    model = load_model(**{key: plain[key] for key in loading}, shape=shapes[shape] if shape else None)
    if plain["weights"] == "random":
        return Target(name, model, build_tokenizer(), "template")
    tokenizer = load_tokenizer(plain["path"], plain["revision"], plain["trust_remote_code"])
    return Target(name, model, tokenizer, plain["format"])


def questions_of(suite: Suite, tasks: list[str], limit: int | None, seed: int) -> list[Question]:
    """The suite's questions of the chosen tasks. Raises InputError when there are none."""
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise InputError(f"limit={limit}: expected a number of questions per task, at least 1")
    chosen = [question for question in suite.questions() if question.task in tasks]
    if not chosen:
        raise InputError(f"suite {suite.name} has no question of task {', '.join(tasks)}")
    return subsample(chosen, limit, seed)


def check_fit(questions: list[Question], target: Target) -> None:
    """Raises InputError for a task none of whose first prompts fits the context."""
    fits: dict[str, bool] = {}
    for question in questions:
        length = len(render(target.chat, [(question.turns[0], None)], target.tokenizer))
        fits[question.task] = fits.get(question.task, False) or length < target.model.context
    for task, fit in fits.items():
        if not fit:
            raise InputError(f"task {task}: no prompt fits the context of {target.model.context} tokens of {target.name}")


def sampling_of(config: DictConfig, target: Target) -> Sampling:
    if config.sampling.temperature != 0:
        raise InputError(f"sampling.temperature={config.sampling.temperature}: only greedy decoding (0) is built so far")
    if not isinstance(config.sampling.max_new_tokens, int) or config.sampling.max_new_tokens < 1:
        raise InputError(f"sampling.max_new_tokens={config.sampling.max_new_tokens}: expected at least 1")
    return Sampling(**config.sampling, stop_token_ids=target.model.eos_ids, seed=config.seed)


def directory_of(config: DictConfig) -> RunDirectory:
    """The run directory, new or fit to be continued. Raises InputError when it holds another config's run."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    run = RunDirectory(config.out or Path("results") / f"{config.target.name}-{stamp}")
    if run.is_run():
        _check_same(run, plain_config(config))
    elif run.path.exists() and any(run.path.iterdir()):
        raise InputError(f"out={run.path}: the folder is not empty and holds no run")
    return run


def plain_config(config: DictConfig) -> dict[str, Any]:
    """The resolved config without Hydra's own part."""
    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    return {key: value for key, value in plain.items() if key != "hydra"}


def _check_same(run: RunDirectory, new: dict[str, Any]) -> None:
    """A run may be extended by more methods, engines or repeats, never by another config."""
    old = run.config()
    for key in sorted((old.keys() | new.keys()) - {"out", "repeats"}):
        before, now = old.get(key), new.get(key)
        if key in ("method", "engine") and isinstance(before, dict) and isinstance(now, dict):
            shared = before.keys() & now.keys()
            before, now = ({name: value[name] for name in shared} for value in (before, now))
        if before != now:
            raise InputError(f"out={run.path} holds another run: its {key} is {_short(before)}, here {_short(now)}")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 80 else text[:77] + "..."


def _merged(run: RunDirectory, new: dict[str, Any]) -> dict[str, Any]:
    """What config.yaml says after an extension: every method and engine that ever ran here, the most repeats."""
    if not run.is_run():
        return new
    old = run.config()
    wider = {key: {**old.get(key, {}), **new[key]} for key in ("method", "engine")}
    return {**new, **wider, "repeats": max(old["repeats"], new["repeats"])}


def execute(config: DictConfig, watcher: Watcher) -> Path:
    """One job: check everything cheap, load, run what is missing; the run directory."""
    _check_values(config)
    run = directory_of(config)
    suite = built(config.suite)
    questions = questions_of(suite, [task.name for task in config.task.values()], config.limit, config.seed)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    target = target_of(config.target)
    check_fit(questions, target)
    sampling = sampling_of(config, target)
    drafters = {label: built(settings) for label, settings in config.method.items()}
    engines: dict[str, Engine] = {name: built(settings) for name, settings in config.engine.items()}
    for engine in engines.values():
        engine.open(target.model, drafters)
    labels = [BASELINE, *(label for label in drafters if label != BASELINE)]
    arms = arms_of(engines, labels)
    run.repair()
    _write_heads(run, config, target, suite)
    schedule = Schedule(config.repeats, config.seed, config.context)
    Harness(run, arms, suite, questions, target.tokenizer, target.chat, sampling, schedule, target.model.device).go(watcher)
    write_summary(run.path)
    return run.path


def _check_values(config: DictConfig) -> None:
    if config.context not in CONTEXTS:
        raise InputError(f"context={config.context}: expected {nearest(config.context, list(CONTEXTS))}")
    if not isinstance(config.repeats, int) or config.repeats < 1:
        raise InputError(f"repeats={config.repeats}: expected at least 1")
    if config.limit is not None and isinstance(config.limit, float) and not math.isfinite(config.limit):
        raise InputError(f"limit={config.limit}: expected a whole number")


def _write_heads(run: RunDirectory, config: DictConfig, target: Target, suite: Suite) -> None:
    """config.yaml and, for a new run, run.json: on disk before the first trial."""
    new = not run.is_run()
    run.write_config(_merged(run, plain_config(config)))
    if new:
        run.write_provenance(
            provenance(target.model.device) | {"dtype": str(target.model.dtype).removeprefix("torch."), **_prints(config, suite)}
        )


def _prints(config: DictConfig, suite: Suite) -> dict[str, Any]:
    return {
        "suite_sha256": suite.fingerprint,
        "target_sha256": fingerprint(config.target.path) if config.target.weights == "pretrained" else None,
        "draft_sha256": fingerprint(config.target.draft.path) if config.target.get("draft") else None,
    }
