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
from specbench.drafters.network_drafter import build_config, create_network, read_config, resume_network
from specbench.errors import InputError, suggest_choices
from specbench.models.target import Target
from specbench.models.texts import GRAM, Text
from specbench.setup.objects import load_target
from specbench.setup.settings import QuestionSettings, TrainSettings
from specbench.training.card import describe_questions, describe_versions
from specbench.training.curves import plot_curves
from specbench.training.gathering import SELF, asks_itself, check_held_out, count_turns, gather_texts, holds_texts
from specbench.training.memory import assume_texts, check_memory, explain_exhaustion
from specbench.training.steps import TrainingPlan
from specbench.training.trainer import LOG, Trainer, count_saved_steps
from specbench.watch import Watch

DONE = "trained"


SETTINGS: tuple[str, ...] = (
    *("batch_tokens", "accumulate", "save_every", "max_new_tokens", "held_out", "epochs", "rate", "muon"),
    *("data", "limit", "precision", "file", "network", "start", "storage", "cache_dir"),
    *(f"questions.{field.name}" for field in fields(QuestionSettings)),
)


def check(settings: TrainSettings, drafter: type[Any]) -> None:
    if not drafter.network_class.trains:
        raise InputError(f"{drafter.__name__} cannot be trained here; expected a published checkpoint, or another method")
    files = [OURS, *drafter.network_class.files]
    if settings.file not in files:
        raise InputError(f"file={settings.file}: expected {suggest_choices(str(settings.file), files)}")
    if settings.start is not None and settings.network is not None:
        raise InputError(f"network={settings.network}: the checkpoint of start={settings.start} has its own; expected null")
    if settings.target.shape is not None:
        raise InputError(f"target.shape={settings.target.shape}: expected null: drafters are trained for the unexpanded model")


def make(settings: TrainSettings, label: str, drafter: type[Any], out: Path, watch: Watch) -> None:
    """Train the drafter. Of several processes (torchrun, accelerate launch) the first one writes."""
    processes = PartialState()
    with processes.main_process_first():
        target = load_target(settings.target)
        target.model.model.requires_grad_(False)  # or a loss through its head would keep gradients of it
        _check_room(settings, drafter.get_network_class(target.model), target)
        with explain_exhaustion(
            target.model.device, f"data={settings.data or 'null'}", "questions are answered in batches; expected data=FILE"
        ):
            texts = gather_texts(settings, target, watch)
        check_held_out(settings.held_out, len(texts))
        shuffled = random.Random(settings.seed).sample(texts, len(texts))
        texts, held_out = shuffled[settings.held_out :], shuffled[: settings.held_out]
    torch.manual_seed(settings.seed)
    plan = _plan(settings)
    with explain_exhaustion(target.model.device, f"batch_tokens={plan.batch_tokens}", "expected fewer tokens, and a new out"):
        network = _create_network(settings, drafter.get_network_class(target.model), target, texts)
        trainer = Trainer(network, target.model, plan, out)
        trainer.fit(texts, held_out, lambda *now: watch("training", *now), lambda need: watch(f"training needs {need}", 0, None))
    if processes.is_main_process:
        write_checkpoint(network, out, settings.file, settings.storage)
        plot_curves(out / LOG, out / "curves.png")
        source = _describe_source(settings) + (f"; from the weights at {settings.start}" if settings.start else "")
        card = _format_card(label, source, plan, target, out, len(texts), len(held_out))
        (out / "README.md").write_text(card, encoding="utf-8")


def _create_network(settings: TrainSettings, kind: type[DraftNetwork], target: Target, texts: list[Text]) -> DraftNetwork:
    """Create the network, or load the one to start from; a new draft vocabulary holds the most frequent tokens of the answers."""
    if settings.start is not None:
        return resume_network(kind, settings.start, target.model)
    network = create_network(kind, target.model, settings.network)
    size = (settings.network or {}).get("draft_vocab_size", target.model.vocabulary)
    if size < target.model.vocabulary:
        counts = torch.bincount(
            torch.tensor([token for text in texts for token in text.answer_ids]), minlength=target.model.vocabulary
        )
        network.choose_vocabulary(counts.topk(size).indices.sort().values)
    return network


def _check_room(settings: TrainSettings, kind: type[DraftNetwork], target: Target) -> None:
    """Raise InputError, before the target answers, if less memory is free than training needs at least."""
    if settings.data not in (None, SELF):
        return  # texts are read at once, and Trainer counts their tokens
    shape = TargetShape.of(target.model.config)
    config = (
        build_config(kind, shape, settings.network or {}) if settings.start is None else read_config(kind, settings.start, shape)
    )
    longest = min(2 * settings.max_new_tokens, target.model.context)
    tokens = min(settings.batch_tokens, count_turns(settings) * longest)  # of all texts, about
    check_memory(kind, config, target.model, _plan(settings), [assume_texts(tokens, longest)])


def _plan(settings: TrainSettings) -> TrainingPlan:
    return TrainingPlan(**{field.name: getattr(settings, field.name) for field in fields(TrainingPlan)})


def describe_kept(settings: TrainSettings, out: Path) -> str:
    """Return what is saved: the target's texts, and the steps up to the last state."""
    steps = count_saved_steps(out)
    texts = ["the target's texts"] if settings.data in (None, SELF) and holds_texts(settings) else []
    return " and ".join([*texts, *([f"{steps:,} steps of training"] if steps else [])])


def _describe_source(settings: TrainSettings) -> str:
    if asks_itself(settings):
        avoided = ", ".join(Path(path).name for path in settings.questions.avoid)
        return f"questions that the target wrote itself, none of which shares {GRAM} tokens with one of {avoided or 'no file'}"
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
