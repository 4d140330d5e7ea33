"""What engines of servers need before they open: files of the target and its draft model, memory, and a first answer."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from specbench.decoding.sampling import Sampling
from specbench.engine.base import Engine
from specbench.engine.served import Served
from specbench.errors import InputError
from specbench.exchange.gguf_file import export_gguf
from specbench.models.load import load_draft
from specbench.models.outline import describe_unloaded
from specbench.models.target import Target
from specbench.records.run_directory import LOGS
from specbench.running.schedule import Arm
from specbench.setup import objects
from specbench.setup.instantiate import locate_class
from specbench.setup.settings import Node, TargetSettings
from tasks.question import Question

GGUF = ".gguf"  # folder of a run, for files that are removed with its end


def check_served(engines: Mapping[str, Engine], methods: Mapping[str, Node]) -> None:
    """Raise InputError for a method that servers alone have, if the first engine is none."""
    served = [label for label, node in methods.items() if locate_class(node) is Served]
    name, first = next(iter(engines.items()))
    if served and not first.serves:
        raise InputError(f"method {served[0]} runs on servers alone; engine {name} is none: put a server's first")


def check_concurrency(questions: Sequence[Question], concurrency: int) -> None:
    """Raise InputError for more requests at a time than there are questions to keep under way."""
    if concurrency > 1 and len(questions) <= concurrency:
        raise InputError(
            f"concurrency={concurrency}: {len(questions)} questions; expected more questions than requests at a time"
        )


def load_wanted_target(settings: TargetSettings, engines: Mapping[str, Engine], labels: Sequence[str]) -> Target:
    """Return the target, without its weights if no engine needs them in this process."""
    if any(engine.loads_target or engine.list_wanted(labels) for engine in engines.values()):
        return objects.load_target(settings)
    tokenizer, chat = objects.load_target_tokenizer(settings)
    return Target(settings.name, describe_unloaded(**objects.list_model_arguments(settings)), tokenizer, chat)


def prepare_engines(
    engines: Mapping[str, Engine], labels: Sequence[str], target: Target, settings: TargetSettings, run: Path, stack: ExitStack
) -> None:
    """Give engines the files that they want, which the stack removes, and a place for logs. The stack closes the engines, too."""
    for engine_name, engine in engines.items():
        stack.callback(engine.close)
        engine.logs = run / LOGS / engine_name
        engine.decode = _build_decode(target.tokenizer)
        if wanted := engine.list_wanted(labels):
            folder = run / GGUF / engine_name
            stack.callback(shutil.rmtree, run / GGUF, ignore_errors=True)
            shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
            folder.mkdir(parents=True)
            for name in wanted:
                engine.take(name, _export(name, target, settings, folder))


def _build_decode(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[int]], str]:
    return lambda ids: str(tokenizer.decode(ids, skip_special_tokens=False))


def _export(name: str, target: Target, settings: TargetSettings, folder: Path) -> Path:
    model = target.model if name == "model" else load_draft(settings.draft, settings.device, settings.weights)
    path = folder / f"{name}.gguf"
    export_gguf(model, target.tokenizer, target.name, path)
    return path


def probe(arms: Sequence[Arm], prompt: list[int], sampling: Sampling) -> None:
    """Raise InputError for a method that cannot be measured."""
    for arm in arms:
        arm.engine.probe(arm.method, prompt, sampling)
