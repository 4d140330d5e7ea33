"""Training a drafter's weights: texts, the paper's loss, and a card of how they were made."""

import json
import random
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from specbench.drafters.checkpoints import OURS, write_checkpoint
from specbench.drafters.network import DraftNetwork, TargetShape
from specbench.drafters.network_drafter import create_network
from specbench.errors import InputError, suggest_choices
from specbench.models.target import Target
from specbench.models.texts import Text, generate_answers, read_texts, write_texts
from specbench.setup.objects import load_target
from specbench.setup.questions import open_suite, select_questions
from specbench.setup.settings import TrainSettings
from specbench.training.card import describe_questions, describe_versions
from specbench.training.curves import plot_curves
from specbench.training.memory import LEAST_ANSWERS, check_memory, explain_exhaustion
from specbench.training.trainer import LOG, Trainer, TrainingPlan, count_saved_steps
from specbench.watch import Watch

TEXTS = "texts.jsonl"
DONE = "trained"


SETTINGS: tuple[str, ...] = (
    *("batch_tokens", "accumulate", "save_every", "max_new_tokens", "held_out", "epochs", "rate", "muon"),
    *("data", "limit", "precision", "file"),
)


def check(settings: TrainSettings, drafter: type[Any]) -> None:
    files = [OURS, *drafter.network_class.files]
    if settings.file not in files:
        raise InputError(f"file={settings.file}: expected {suggest_choices(str(settings.file), files)}")
    if settings.target.shape is not None:
        raise InputError(f"target.shape={settings.target.shape}: expected null: drafters are trained for the unexpanded model")


def make(settings: TrainSettings, label: str, drafter: type[Any], out: Path, watch: Watch) -> None:
    """Train the drafter. Of several processes (torchrun, accelerate launch) the first one writes."""
    processes = PartialState()
    with processes.main_process_first():
        target = load_target(settings.target)
        _check_room(settings, drafter.network_class, target)
        texts = _load_texts(settings, target, out, watch)
        _check_held_out(settings.held_out, len(texts))
        shuffled = random.Random(settings.seed).sample(texts, len(texts))
        texts, held_out = shuffled[settings.held_out :], shuffled[: settings.held_out]
    torch.manual_seed(settings.seed)
    plan = TrainingPlan(**{field.name: getattr(settings, field.name) for field in fields(TrainingPlan)})
    with explain_exhaustion(target.model.device, f"batch_tokens={plan.batch_tokens}", _advise(out)):
        network = create_network(drafter.network_class, target.model)
        Trainer(network, target.model, plan, out).fit(texts, held_out, lambda *now: watch("training", *now))
    if processes.is_main_process:
        write_checkpoint(network, out, settings.file)
        plot_curves(out / LOG, out / "curves.png")
        card = _format_card(label, _describe_source(settings), plan, target, out, len(texts), len(held_out))
        (out / "README.md").write_text(card, encoding="utf-8")


def _check_room(settings: TrainSettings, kind: type[DraftNetwork], target: Target) -> None:
    """Raise InputError before the target answers, if not even the least that training needs is free."""
    if settings.data is not None:
        return  # texts are read at once, and Trainer counts their tokens
    shape = TargetShape.of(target.model.config)
    with torch.device("meta"):
        network = kind(kind.create_config(shape), shape)
    questions = select_questions(settings, open_suite(settings), settings.limit)
    most = sum(len(question.turns) for question in questions) * 2 * settings.max_new_tokens  # of all texts, about
    tokens = min(settings.batch_tokens, most)
    check_memory(network, target.model.device, tokens, int(LEAST_ANSWERS * tokens), settings.batch_tokens)


def describe_kept(out: Path) -> str:
    """Return what is saved: the target's answers, and the steps up to the last state."""
    steps = count_saved_steps(out)
    answers = ["the target's answers"] if (out / TEXTS).is_file() else []
    return " and ".join([*answers, *([f"{steps:,} steps of training"] if steps else [])])


def _load_texts(settings: TrainSettings, target: Target, out: Path, watch: Watch) -> list[Text]:
    """Read the texts of `data`, else the target's own answers, kept in the folder for resuming and for other methods."""
    if settings.data is not None:
        return read_texts(Path(settings.data).expanduser(), target)
    if not (out / TEXTS).is_file():
        questions = select_questions(settings, open_suite(settings), settings.limit)
        _check_held_out(settings.held_out, sum(len(question.turns) for question in questions))
        with explain_exhaustion(target.model.device, "data=null", "many questions are answered at once; expected data=FILE"):
            write_texts(out / TEXTS, generate_answers(target, questions, settings.max_new_tokens, watch))
    return read_texts(out / TEXTS, target)


def _advise(out: Path) -> str:
    """Return how to train with less memory without losing the target's answers."""
    kept = f", with data={out / TEXTS} and another out" if (out / TEXTS).is_file() else ""
    return f"expected fewer tokens{kept}"


def _check_held_out(held_out: int, answers: int) -> None:
    """Raise InputError if no answer would be left to train on."""
    if held_out >= answers:
        raise InputError(f"held_out={held_out}: expected fewer than the {answers} answers, so that some are left to train on")


def _describe_source(settings: TrainSettings) -> str:
    if settings.data is not None:
        return Path(settings.data).name
    return f"the target's own to {describe_questions(settings)}"


def _format_card(label: str, source: str, plan: TrainingPlan, target: Target, out: Path, trained: int, held_out: int) -> str:
    last = json.loads((out / LOG).read_text(encoding="utf-8").splitlines()[-1])
    shares = {"training, last steps": last["right"], "held-out": last["held_out_right"]}
    rows = [f"| {name} | {' | '.join(f'{share:.1%}' for share in values)} |" for name, values in shares.items()]
    depths = " | ".join(str(depth) for depth in range(1, len(last["right"]) + 1))
    return "\n".join(
        [
            f"# {label} for {target.name}",
            "",
            f"Made by `specbench train`: {last['step']:,} steps of {plan.accumulate} × {plan.batch_tokens:,} tokens,",
            f"{last['tokens']:,} tokens in all with padding, {last['seconds'] / 60:.1f} minutes;",
            f"{trained:,} training answers, {held_out} held out: {source}.",
            f"Learning rate {plan.rate:g}{f', Muon {plan.muon:g}' if plan.muon else ''}, mixed precision {plan.precision}.",
            describe_versions(target.model.device),
            "",
            "Accuracy of the most probable token by depth of the draft, given the right tokens before it:",
            "",
            f"| answers | {depths} |",
            f"|---|{'---:|' * len(last['right'])}",
            *rows,
            "",
            f"[Log]({LOG}), [curves](curves.png).",
            "",
        ]
    )
