"""Check that a training fits in memory, by a rehearsal: a CPU's allocator refuses nothing; the system then kills the process."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from specbench.decoding.language_model import LanguageModel
from specbench.drafters.network import DraftNetwork, TargetShape
from specbench.drafters.network_drafter import build_network
from specbench.errors import InputError, is_out_of_memory
from specbench.machine.devices import get_free_memory
from specbench.machine.rehearsal import Rehearsal
from specbench.models.texts import Text
from specbench.training.steps import TrainingPlan, build_lesson, build_optimizers, count_answers, list_trained

STEPS = 2  # from the second one on, the optimizers' states exist
LEAST_ANSWERS = 0.25  # of a batch's tokens, assumed while the answers are not known
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class TrainingNeed:
    """Bytes besides the target. weights: of the network. fixed: these, gradients and the optimizers' states. peak: at most."""

    weights: int
    fixed: int
    peak: int


def rehearse_training(
    kind: type[DraftNetwork], config: Mapping[str, Any], target: LanguageModel, plan: TrainingPlan, texts: list[Text]
) -> TrainingNeed:
    """Return what training a network on a batch of texts needs: two steps, the target's forward included."""
    shape = TargetShape.of(target.config)
    drafted = {shape.vocab_size: int(config.get("draft_vocab_size", shape.vocab_size))}
    with Rehearsal(rows=count_answers(texts), chosen=drafted) as rehearsal:
        network = build_network(kind, config, shape, target.device, torch.float32)
        network.init_weights(target)
        network.attach_target(target)
        weights, optimizers = rehearsal.restart(), build_optimizers(network, plan)
        trained = list_trained(network)
        gradients = sum(weight.nbytes for weight in trained)
        for _ in range(STEPS):
            lesson = build_lesson(texts, target, network.taps)
            with _cast(target.device, plan.precision):
                loss = network.compute_loss(lesson).loss
            torch.autograd.backward(loss)
            del loss
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        del lesson
        return TrainingNeed(weights, rehearsal.held + gradients, rehearsal.peak)


def _cast(device: torch.device, precision: str) -> Any:
    """Return the context of a forward in mixed precision."""
    return torch.autocast(device.type, AUTOCAST[precision]) if precision in AUTOCAST else nullcontext()


def check_memory(
    kind: type[DraftNetwork],
    config: Mapping[str, Any],
    target: LanguageModel,
    plan: TrainingPlan,
    batches: Sequence[list[Text]],
    made: bool = False,
) -> str:
    """Return what training on the largest batches needs, in words, or nothing if it cannot be rehearsed.

    made: the network already exists, so its weights are not part of the free memory. Raises InputError for what does not fit.
    """
    free = get_free_memory(target.device)
    try:
        needs = [rehearse_training(kind, config, target, plan, batch) for batch in batches]
    except Exception:  # of any type: a network's own code, whose sizes depend on what it reads
        return ""
    need, texts = max(zip(needs, batches, strict=True), key=lambda pair: pair[0].peak)
    there = need.weights if made else 0
    if need.peak - there > free:
        raise InputError(_refuse(need, there, free, texts, target, plan.batch_tokens))
    return f"{_format(need.peak - there)} of {_format(free)} free"


def _refuse(need: TrainingNeed, there: int, free: int, texts: list[Text], target: LanguageModel, batch_tokens: int) -> str:
    tokens = len(texts) * max(len(text.prompt_ids) + len(text.answer_ids) for text in texts)
    room = (free + there - need.fixed) * tokens // max(1, need.peak - need.fixed)
    advice = f"expected at most about {room}" if room > 0 else "no batch is small enough"
    batch = f"{count_answers(texts):,} answer tokens × {target.vocabulary:,} ids"
    parts = f"{_format(need.fixed - there)} for weights, gradients and AdamW, {_format(need.peak - need.fixed)} for {batch}"
    needed = f"training needs {_format(need.peak - there)} on {target.device} ({parts})"
    return f"batch_tokens={batch_tokens}: {advice}: {needed}, but only {_format(free)} are free"


def assume_texts(tokens: int, longest: int) -> list[Text]:
    """Return a batch of about `tokens` tokens, for an estimate before there are answers."""
    answer = max(2, int(LEAST_ANSWERS * longest))
    return [Text([0] * max(1, longest - answer), [0] * answer)] * max(1, tokens // longest)


def _format(count: int) -> str:
    return f"{count / 1e9:.1f} GB"


@contextmanager
def explain_exhaustion(device: torch.device, setting: str, advice: str) -> Iterator[None]:
    """Raise InputError if memory runs out, naming the setting to blame and what to do."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(f"{setting}: the memory of {device} ran out; {advice}") from None
