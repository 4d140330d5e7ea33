"""The training loop of both embedded models: Muon and AdamW on token batches, with a log."""

import json
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from specbench.training.muon import Muon
from specbench.zoo.recipes.batches import IGNORED, Batch, encode_dialogue, pad_rows
from specbench.zoo.recipes.tokenizer import VOCABULARY
from tasks.mini.generator import WRITERS, generate_dialogues

LOG_EVERY = 200_000  # tokens between two lines of the log


def build_mini_config(layers: int, hidden: int, intermediate: int, heads: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=None,
    )


def compute_answers(model: LlamaForCausalLM, ids: Tensor, labels: Tensor) -> Batch:
    """Return logits (n, V) and labels (n,) of the n answer tokens; the head runs only on their rows."""
    hidden = model.model(ids, use_cache=False).last_hidden_state  # (B, T, H)
    answers = labels[:, 1:] != IGNORED
    return model.lm_head(hidden[:, :-1][answers]), labels[:, 1:][answers]


def fit(
    model: LlamaForCausalLM,
    stream: Iterator[Batch],
    compute_loss: Callable[[Tensor, Tensor, float], Tensor],
    tokens: int,
    rates: tuple[float, float],
    falling: bool,
    log: Callable[[dict[str, Any]], None],
) -> None:
    """Train on `tokens` tokens. compute_loss(ids, labels, progress): in nats; rates: peaks of Muon and AdamW.

    log: called with step, tokens, seconds and mean loss every LOG_EVERY tokens and at the end.
    """
    optimizers = _build_optimizers(model, *rates)
    groups = [(group, group["lr"]) for optimizer in optimizers for group in optimizer.param_groups]
    begin, seen, running, logged = time.monotonic(), 0, 0.0, 0
    for step, (ids, labels) in enumerate(stream):
        for group, peak in groups:
            group["lr"] = peak * _schedule_rate(seen / tokens, falling)
        loss = compute_loss(ids, labels, seen / tokens)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        seen += ids.numel()
        running = loss.item() if step == 0 else 0.95 * running + 0.05 * loss.item()
        if seen // LOG_EVERY > logged or seen >= tokens:
            logged = seen // LOG_EVERY
            log({"step": step, "tokens": seen, "seconds": round(time.monotonic() - begin), "loss": round(running, 4)})
        if seen >= tokens:
            return


def _build_optimizers(model: nn.Module, matrix_rate: float, vector_rate: float) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices inside the layers and AdamW for the rest."""
    matrices = [p for name, p in model.named_parameters() if ".layers." in name and p.ndim == 2]
    others = [p for name, p in model.named_parameters() if not (".layers." in name and p.ndim == 2)]
    adam = torch.optim.AdamW(others, lr=vector_rate, betas=(0.9, 0.95), weight_decay=0.01)
    return [Muon(matrices, lr=matrix_rate), adam]


def _schedule_rate(progress: float, falling: bool) -> float:
    """Return the factor on the peak rate: a short rise, a plateau and, if falling, a linear decay over the second half."""
    rise = min(1.0, progress / 0.08 + 0.02)
    return rise * min(1.0, (1 - progress) / 0.5 + 0.01) if falling else rise


def write_log_line(out: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, row: dict[str, Any]) -> None:
    with (out / "training_log.jsonl").open("a") as lines:
        lines.write(json.dumps(row | {"held_out": evaluate_held_out(model, tokenizer)}) + "\n")


@torch.inference_mode()
def evaluate_held_out(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, count: int = 16
) -> dict[str, tuple[float, float]]:
    """Return per task, on test dialogues, the cross-entropy in nats and the share of answer tokens predicted."""
    scores = {}
    for task in WRITERS:
        rows = [encode_dialogue(dialogue, tokenizer) for dialogue in islice(generate_dialogues(task, "test"), count)]
        logits, labels = compute_answers(model, *pad_rows(rows, tokenizer.eos_token_id))
        accuracy = (logits.argmax(-1) == labels).float().mean().item()
        scores[task] = (round(nn.functional.cross_entropy(logits, labels).item(), 4), round(accuracy, 4))
    return scores
