"""The recipe of the embedded target: four layers first, doubled half-way without changing a single output, then all eight.

    python -m specbench.zoo.train_target OUT [--from-stage N]

OUT receives model.safetensors, config.json, the tokenizer and training_log.jsonl: a line a minute with stage, step, tokens,
seconds, loss and, per task, held-out loss and share of answer tokens predicted.
"""

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from specbench.zoo.batches import batches, padded, tokens_and_labels
from specbench.zoo.circuits import install
from specbench.zoo.muon import Muon
from specbench.zoo.tokenizer import VOCABULARY, build_tokenizer
from tasks.mini.generator import WRITERS, dialogues

SEED = 11


@dataclass(frozen=True)
class Stage:
    """A stretch of training: layers, smallest dialogue, shares of drills, tokens per step, peak rates."""

    layers: int
    smallest: float
    drills: Mapping[str, float]
    tokens: int
    minutes: float
    matrix_rate: float
    vector_rate: float


STAGES = (
    Stage(
        layers=4, smallest=0.05, drills={"repeat": 0.13, "vocabulary": 0.13, "arithmetic": 0.14},
        tokens=3072, minutes=8.4, matrix_rate=0.004, vector_rate=1e-3,
    ),
    Stage(
        layers=4, smallest=0.2, drills={"facts": 0.15, "arithmetic": 0.05},
        tokens=4096, minutes=15, matrix_rate=0.008, vector_rate=2e-3,
    ),
    Stage(layers=8, smallest=0.6, drills={"facts": 0.05}, tokens=4096, minutes=22, matrix_rate=0.008, vector_rate=2e-3),
)  # fmt: skip


def target_config(layers: int = 8, hidden: int = 256, intermediate: int = 640, heads: int = 4) -> LlamaConfig:
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


def deepened(model: LlamaForCausalLM, config: LlamaConfig) -> LlamaForCausalLM:
    """The same function with twice the layers: after each layer stands a copy of it whose outputs are zero."""
    deep = LlamaForCausalLM(config)
    weights = model.state_dict()
    doubled = {}
    for name, value in weights.items():
        if ".layers." not in name:
            doubled[name] = value
            continue
        before, after = name.split(".layers.")
        number, rest = after.split(".", 1)
        silent = rest in ("self_attn.o_proj.weight", "mlp.down_proj.weight")
        doubled[f"{before}.layers.{2 * int(number)}.{rest}"] = value
        doubled[f"{before}.layers.{2 * int(number) + 1}.{rest}"] = torch.zeros_like(value) if silent else value.clone()
    deep.load_state_dict(doubled)
    return deep


def optimizers(model: nn.Module, matrix_rate: float, vector_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the rest."""
    matrices = [p for name, p in model.named_parameters() if ".layers." in name and p.ndim == 2]
    others = [p for name, p in model.named_parameters() if not (".layers." in name and p.ndim == 2)]
    adam = torch.optim.AdamW(others, lr=vector_rate, betas=(0.9, 0.95), weight_decay=0.01)
    return [Muon(matrices, lr=matrix_rate), adam]


def answer_loss(model: LlamaForCausalLM, ids: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy over the answer tokens, in nats; the head runs on those rows alone."""
    hidden = model.model(ids, use_cache=False).last_hidden_state  # (B, T, H)
    wanted = labels[:, 1:] != -100
    logits = model.lm_head(hidden[:, :-1][wanted])  # (answer tokens, V)
    return nn.functional.cross_entropy(logits, labels[:, 1:][wanted])


@torch.inference_mode()
def held_out(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, count: int = 16) -> dict[str, tuple[float, float]]:
    """Per task on test dialogues: cross-entropy in nats and the share of answer tokens predicted, given the right past."""
    found = {}
    for task in WRITERS:
        rows = [tokens_and_labels(dialogue, tokenizer) for dialogue in islice(dialogues(task, "test"), count)]
        ids, labels = padded(rows, tokenizer.eos_token_id)
        wanted = labels[:, 1:] != -100
        logits = model.lm_head(model.model(ids, use_cache=False).last_hidden_state[:, :-1][wanted])
        hit = (logits.argmax(-1) == labels[:, 1:][wanted]).float().mean().item()
        found[task] = (round(nn.functional.cross_entropy(logits, labels[:, 1:][wanted]).item(), 4), round(hit, 4))
    return found


def rate(progress: float, final: bool) -> float:
    """Factor on the peak rate: a short rise, a plateau, and in the last stage a linear fall over its second half."""
    rise = min(1.0, progress / 0.08 + 0.02)
    return rise * min(1.0, (1 - progress) / 0.5 + 0.01) if final else rise


def train_stage(model: LlamaForCausalLM, number: int, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """Train for the stage's minutes; a line of the log and a checkpoint each minute."""
    stage, final = STAGES[number], number == len(STAGES) - 1
    pair = optimizers(model, stage.matrix_rate, stage.vector_rate)
    groups = [(group, group["lr"]) for optimizer in pair for group in optimizer.param_groups]
    begin, seen, running, noted = time.monotonic(), 0, 0.0, -1
    for step, (ids, labels) in enumerate(batches(tokenizer, stage.tokens, SEED + number, stage.smallest, stage.drills)):
        elapsed = time.monotonic() - begin
        if elapsed > 60 * stage.minutes:
            return
        for group, peak in groups:
            group["lr"] = peak * rate(elapsed / 60 / stage.minutes, final)
        loss = answer_loss(model, ids, labels)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in pair:
            optimizer.step()
            optimizer.zero_grad()
        seen += ids.numel()
        running = loss.item() if step == 0 else 0.95 * running + 0.05 * loss.item()
        if elapsed // 60 > noted:
            noted = int(elapsed // 60)
            row = {"stage": number, "step": step, "tokens": seen, "seconds": round(elapsed), "loss": round(running, 4)}
            note(out, model, tokenizer, row)


def note(out: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, row: dict) -> None:
    """A line of the training log, and the weights as they are."""
    with (out / "training_log.jsonl").open("a") as lines:
        lines.write(json.dumps(row | {"held_out": held_out(model, tokenizer)}) + "\n")
    model.save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--from-stage", type=int, default=0, help="go on from the model in OUT at this stage")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(options.out)
    model = LlamaForCausalLM.from_pretrained(options.out) if options.from_stage else _fresh()
    for number, stage in enumerate(STAGES[options.from_stage :], options.from_stage):
        if stage.layers != model.config.num_hidden_layers:
            model = deepened(model, target_config(stage.layers))
        train_stage(model, number, tokenizer, options.out)
        model.save_pretrained(options.out)
    model.half().save_pretrained(options.out)


def _fresh() -> LlamaForCausalLM:
    model = LlamaForCausalLM(target_config(STAGES[0].layers))
    install(model, SEED)
    return model


if __name__ == "__main__":
    main()
