"""One training loop for both embedded models: Muon and AdamW on token batches, and a log of how it went."""

import json
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from specbench.training.muon import Muon
from specbench.zoo.recipes.batches import encode_dialogue, pad_rows
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


def fit(
    model: LlamaForCausalLM,
    stream: Iterator[tuple[Tensor, Tensor]],
    loss_of: Callable[[Tensor, Tensor, float], Tensor],
    tokens: int,
    rates: tuple[float, float],
    falling: bool,
    note: Callable[[dict], None],
) -> None:
    """Train until `tokens` are seen. `loss_of(ids, labels, progress)` in nats; `rates` are the peaks of Muon and AdamW.

    `note` is called with step, tokens, seconds and mean loss at each NOTED tokens and at the end.
    """
    pair = _build_optimizers(model, *rates)
    groups = [(group, group["lr"]) for optimizer in pair for group in optimizer.param_groups]
    begin, seen, running, noted = time.monotonic(), 0, 0.0, 0
    for step, (ids, labels) in enumerate(stream):
        for group, peak in groups:
            group["lr"] = peak * _schedule_rate(seen / tokens, falling)
        loss = loss_of(ids, labels, seen / tokens)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in pair:
            optimizer.step()
            optimizer.zero_grad()
        seen += ids.numel()
        running = loss.item() if step == 0 else 0.95 * running + 0.05 * loss.item()
        if seen // LOG_EVERY > noted or seen >= tokens:
            noted = seen // LOG_EVERY
            note({"step": step, "tokens": seen, "seconds": round(time.monotonic() - begin), "loss": round(running, 4)})
        if seen >= tokens:
            return


def _build_optimizers(model: nn.Module, matrix_rate: float, vector_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the rest."""
    matrices = [p for name, p in model.named_parameters() if ".layers." in name and p.ndim == 2]
    others = [p for name, p in model.named_parameters() if not (".layers." in name and p.ndim == 2)]
    adam = torch.optim.AdamW(others, lr=vector_rate, betas=(0.9, 0.95), weight_decay=0.01)
    return [Muon(matrices, lr=matrix_rate), adam]


def _schedule_rate(progress: float, falling: bool) -> float:
    """Factor on the peak rate: a short rise, a plateau and, if falling, a linear way down over the second half."""
    rise = min(1.0, progress / 0.08 + 0.02)
    return rise * min(1.0, (1 - progress) / 0.5 + 0.01) if falling else rise


def write_log_line(out: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, row: dict) -> None:
    with (out / "training_log.jsonl").open("a") as lines:
        lines.write(json.dumps(row | {"held_out": evaluate_held_out(model, tokenizer)}) + "\n")


@torch.inference_mode()
def evaluate_held_out(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, count: int = 16
) -> dict[str, tuple[float, float]]:
    """Per task on test dialogues: cross-entropy in nats and the share of answer tokens predicted, given the right past."""
    found = {}
    for task in WRITERS:
        rows = [encode_dialogue(dialogue, tokenizer) for dialogue in islice(generate_dialogues(task, "test"), count)]
        ids, labels = pad_rows(rows, tokenizer.eos_token_id)
        wanted = labels[:, 1:] != -100
        logits = model.lm_head(model.model(ids, use_cache=False).last_hidden_state[:, :-1][wanted])
        hit = (logits.argmax(-1) == labels[:, 1:][wanted]).float().mean().item()
        found[task] = (round(nn.functional.cross_entropy(logits, labels[:, 1:][wanted]).item(), 4), round(hit, 4))
    return found
