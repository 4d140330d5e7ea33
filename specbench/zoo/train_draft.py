"""The recipe of the embedded draft model: two layers, a tenth of the target, trained to write what the target writes.

    python -m specbench.zoo.train_draft TARGET OUT [--minutes M]

It first reads the training dialogues alone; then the target reads along, and the draft model learns its distribution at every
answer token (Kullback-Leibler divergence) beside the token itself. Training is short on purpose: in ten minutes the draft
model would write nearly all that the target writes, and drafting would hold no more questions. OUT receives the same files as
from the target's recipe.
"""

import argparse
import itertools
import json
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, LlamaForCausalLM

from specbench.zoo.batches import batches
from specbench.zoo.circuits import install
from specbench.zoo.train_target import held_out, optimizers, rate, target_config

SEED = 12
TOKENS = 4096
MATRIX_RATE, VECTOR_RATE = 0.005, 1.5e-3
DISTILLED = 0.7  # share of the divergence in the loss
SHORT, ALONE = 0.35, 0.7  # of the time: until then short dialogues and drills; until then without the target as teacher
DRILLS = {"repeat": 0.13, "vocabulary": 0.15, "arithmetic": 0.07, "facts": 0.1}


def draft_loss(draft: LlamaForCausalLM, target: LlamaForCausalLM | None, ids: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy with the text over answer tokens and, given a target, divergence from its distribution; in nats."""
    wanted = labels[:, 1:] != -100
    guess = _log_probabilities(draft, ids, wanted)
    text = nn.functional.nll_loss(guess, labels[:, 1:][wanted])
    if target is None:
        return text
    with torch.no_grad():
        taught = _log_probabilities(target, ids, wanted)
    divergence = nn.functional.kl_div(guess, taught, log_target=True, reduction="batchmean")
    return DISTILLED * divergence + (1 - DISTILLED) * text


def _log_probabilities(model: LlamaForCausalLM, ids: Tensor, wanted: Tensor) -> Tensor:
    """(answer tokens, V) float32."""
    hidden = model.model(ids, use_cache=False).last_hidden_state  # (B, T, H)
    return model.lm_head(hidden[:, :-1][wanted]).log_softmax(-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=2.5)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(options.target)
    tokenizer.save_pretrained(options.out)
    target = LlamaForCausalLM.from_pretrained(options.target).eval()
    draft = LlamaForCausalLM(target_config(layers=2, hidden=128, intermediate=320, heads=2))
    install(draft, SEED)
    train(draft, target, tokenizer, options.minutes * 60, options.out)
    draft.half().save_pretrained(options.out)


def train(draft: LlamaForCausalLM, target: LlamaForCausalLM, tokenizer, seconds: float, out: Path) -> None:  # type: ignore[no-untyped-def]
    pair = optimizers(draft, MATRIX_RATE, VECTOR_RATE)
    groups = [(group, group["lr"]) for optimizer in pair for group in optimizer.param_groups]
    begin, noted, seen = time.monotonic(), -1, 0
    short = batches(tokenizer, TOKENS, SEED, smallest=0.05, drills=DRILLS)
    long = batches(tokenizer, TOKENS, SEED + 1, smallest=0.4, drills={"vocabulary": 0.05, "facts": 0.05})
    for step in itertools.count():
        elapsed = time.monotonic() - begin
        if elapsed > seconds:
            return
        ids, labels = next(short if elapsed < SHORT * seconds else long)
        for group, peak in groups:
            group["lr"] = peak * rate(elapsed / seconds, final=True)
        loss = draft_loss(draft, target if elapsed > ALONE * seconds else None, ids, labels)
        loss.backward()
        nn.utils.clip_grad_norm_(draft.parameters(), 1.0)
        for optimizer in pair:
            optimizer.step()
            optimizer.zero_grad()
        seen += ids.numel()
        if int(elapsed) // 60 > noted:
            noted = int(elapsed) // 60
            row = {"step": step, "tokens": seen, "seconds": round(elapsed), "loss": round(loss.item(), 4)}
            with (out / "training_log.jsonl").open("a") as lines:
                lines.write(json.dumps(row | {"held_out": held_out(draft, tokenizer)}) + "\n")


if __name__ == "__main__":
    main()
