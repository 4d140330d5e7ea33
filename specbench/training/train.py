"""`specbench train`: from a config to a trained drafter, its log, its curves and a card of how it was made."""

import json
import random
from collections.abc import Callable
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from specbench.build import built, check, check_types
from specbench.checkpoints import OURS, DraftNetwork, NetworkDrafter, new_network, write
from specbench.devices import pick_device
from specbench.errors import InputError
from specbench.harness import Target
from specbench.hints import nearest
from specbench.metrics import BASELINE
from specbench.models import load_model
from specbench.provenance import provenance
from specbench.run import LOADING, SHARED_RULES, WHOLE, check_rules, plain_config, questions_of, target_of
from specbench.training.curves import curves
from specbench.training.texts import Text, answered, read_texts, write_texts
from specbench.training.trainer import LOG, Plan, Trainer

TEXTS, CONFIG = "texts.jsonl", "train.yaml"
PRECISIONS = ("no", "bf16", "fp16")
ANSWERING = timedelta(days=7)  # at most, while the first process lets the target answer and the others wait
Watch = Callable[[str, int, int, dict[str, Any]], None]


def train(config: DictConfig, watch: Watch) -> Path:
    """The folder of the trained checkpoint. watch(what, done, of, row of the log). Raises InputError.

    Of several processes (torchrun, accelerate launch) the first one writes and watches.
    """
    label, settings = _chosen(config)
    kind = _checked(config, label, settings)
    processes = PartialState(cpu=pick_device(config.target.device).type == "cpu", timeout=ANSWERING)
    if not processes.is_main_process:
        watch = lambda *_: None  # noqa: E731
    with processes.main_process_first():
        out = _folder(config, label)
        target = target_of(config.target)
        texts, held_out = _split(_texts(config, target, out, watch), config.held_out, config.seed)
    torch.manual_seed(config.seed)
    network = new_network(kind, target.model)
    plan = Plan(**{field.name: config[field.name] for field in fields(Plan)})
    Trainer(network, target.model, plan, out).fit(texts, held_out, lambda *now: watch("training", *now))
    if processes.is_main_process:
        write(network, out, config.file)
        curves(out / LOG, out / "curves.png")
        card = _card(label, _source(config), plan, target, out, len(texts), len(held_out))
        (out / "README.md").write_text(card, encoding="utf-8")
    return out


def _positive(value: Any) -> bool:
    return type(value) in (int, float) and value > 0


RULES = (
    SHARED_RULES
    | dict.fromkeys(("batch_tokens", "accumulate", "save_every", "max_new_tokens", "held_out"), WHOLE)
    | dict.fromkeys(("epochs", "rate"), (_positive, "a number above 0"))
    | {"muon": (lambda value: value is None or _positive(value), "a number above 0, or null")}
)


def _chosen(config: DictConfig) -> tuple[str, DictConfig]:
    """Raises InputError for several methods."""
    labels = [label for label in config.method if label != BASELINE]
    if len(labels) != 1:
        raise InputError(f"method={labels}: expected one, such as method=eagle3")
    return str(labels[0]), config.method[labels[0]]


def _checked(config: DictConfig, label: str, settings: DictConfig) -> type[DraftNetwork]:
    check(settings, f"method.{label}")
    check(config.suite, "suite")
    check_types(load_model, {key: config.target[key] for key in LOADING}, "target")
    drafter = get_object(settings._target_)
    if not (isinstance(drafter, type) and issubclass(drafter, NetworkDrafter)):
        raise InputError(f"method={label}: has no weights of its own to train")
    kind = drafter.network_class
    check_rules(config, RULES)
    if config.precision not in PRECISIONS:
        raise InputError(f"precision={config.precision}: expected {nearest(str(config.precision), list(PRECISIONS))}")
    if config.file not in (OURS, *kind.files):
        raise InputError(f"file={config.file}: expected {nearest(str(config.file), [OURS, *kind.files])}")
    return kind


def _folder(config: DictConfig, label: str) -> Path:
    """`out`, with the config beside what will lie there. Raises InputError for a folder of another training."""
    out = Path(config.out or f"results/train-{config.target.name}-{label}").expanduser()
    said = OmegaConf.to_yaml(OmegaConf.create(plain_config(config)))
    there = out / CONFIG
    begun = out.exists() and any(path.name != CONFIG for path in out.iterdir())
    if begun and there.is_file() and there.read_text(encoding="utf-8") != said:
        raise InputError(f"out={out}: holds a training of another config ({CONFIG}); choose another folder")
    if begun and not there.is_file():
        raise InputError(f"out={out}: expected a training's folder, an empty one or a new one")
    out.mkdir(parents=True, exist_ok=True)
    there.write_text(said, encoding="utf-8")
    return out


def _texts(config: DictConfig, target: Target, out: Path, watch: Watch) -> list[Text]:
    """Those of `data`; else the target's own answers, kept in the folder for a later start and for other methods."""
    if config.data is not None:
        return read_texts(Path(config.data).expanduser(), target)
    if not (out / TEXTS).is_file():
        questions = questions_of(built(config.suite), [task.name for task in config.task.values()], config.limit, config.seed)
        done = 0

        def answering(count: int) -> None:
            nonlocal done
            done += count
            watch("the target answers", done, len(questions), {})

        write_texts(out / TEXTS, answered(target, questions, config.max_new_tokens, answering))
    return read_texts(out / TEXTS, target)


def _split(texts: list[Text], held_out: int, seed: int) -> tuple[list[Text], list[Text]]:
    """Raises InputError when nothing would be left to train on."""
    if not 0 < held_out < len(texts):
        raise InputError(f"held_out={held_out}: expected 1 to {len(texts) - 1}, for there are {len(texts)} answers")
    shuffled = random.Random(seed).sample(texts, len(texts))
    return shuffled[held_out:], shuffled[:held_out]


def _source(config: DictConfig) -> str:
    if config.data is not None:
        return Path(config.data).name
    split = config.suite.get("split", "no")
    return f"the target's own to the questions of {get_object(config.suite._target_).__name__}, {split} split"


def _card(label: str, source: str, plan: Plan, target: Target, out: Path, trained: int, held_out: int) -> str:
    last = json.loads((out / LOG).read_text(encoding="utf-8").splitlines()[-1])
    about = provenance(target.model.device)
    commit = f"{about['git']['commit']}{' with changes' * bool(about['git']['dirty'])}"
    shares = {"training, the last steps": last["right"], "held-out": last["held_out_right"]}
    rows = [f"| {name} | {' | '.join(f'{share:.1%}' for share in found)} |" for name, found in shares.items()]
    depths = " | ".join(str(depth) for depth in range(1, len(last["right"]) + 1))
    return "\n".join(
        [
            f"# {label} for {target.name}",
            "",
            f"Made by `specbench train`: {last['step']:,} steps of {plan.accumulate} × {plan.batch_tokens:,} tokens,",
            f"{last['tokens']:,} in all with their padding, {last['seconds'] / 60:.1f} minutes;",
            f"{trained:,} answers to learn from, {held_out} held out: {source}.",
            f"Learning rate {plan.rate:g}{f', Muon {plan.muon:g}' if plan.muon else ''}, mixed precision {plan.precision}.",
            f"specbench {about['versions']['specbench']}, torch {about['versions']['torch']}, commit {commit}.",
            "",
            "How often the best guess was the right token, by depth of the draft, given the right tokens before it:",
            "",
            f"| answers | {depths} |",
            f"|---|{'---:|' * len(last['right'])}",
            *rows,
            "",
            f"[Log]({LOG}), [curves](curves.png).",
            "",
        ]
    )
