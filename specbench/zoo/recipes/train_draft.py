"""The recipe of the embedded draft model: two layers, a tenth of the target, trained to write what the target writes.

    python -m specbench.zoo.recipes.train_draft TARGET OUT

It first reads the training dialogues alone; then the target reads along, and the draft model learns its distribution at every
answer token (Kullback-Leibler divergence) beside the token itself. Training is short on purpose: with four times as much the
draft model would write nearly all that the target writes, and drafting would hold no more questions. OUT receives the same
files as from the target's recipe.
"""

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

from specbench.zoo.recipes.batches import iter_batches
from specbench.zoo.recipes.circuits import install_circuit
from specbench.zoo.recipes.fit import build_mini_config, fit, write_log_line

SEED = 12
TOKENS, STEP_TOKENS = 2_000_000, 4096
RATES = (0.005, 1.5e-3)
DISTILLED = 0.7  # share of the divergence in the loss
SHORT, ALONE = 0.35, 0.7  # of the tokens: until then short dialogues and drills; until then without the target as teacher
DRILLS = {"repeat": 0.13, "vocabulary": 0.15, "arithmetic": 0.07, "facts": 0.1}


def draft_loss(draft: LlamaForCausalLM, target: LlamaForCausalLM, ids: Tensor, labels: Tensor, progress: float) -> Tensor:
    """Cross-entropy with the text over answer tokens and, later, divergence from the target's distribution; in nats."""
    wanted = labels[:, 1:] != -100
    guess = _compute_log_probabilities(draft, ids, wanted)
    text = nn.functional.nll_loss(guess, labels[:, 1:][wanted])
    if progress <= ALONE:
        return text
    with torch.no_grad():
        taught = _compute_log_probabilities(target, ids, wanted)
    divergence = nn.functional.kl_div(guess, taught, log_target=True, reduction="batchmean")
    return DISTILLED * divergence + (1 - DISTILLED) * text


def _compute_log_probabilities(model: LlamaForCausalLM, ids: Tensor, wanted: Tensor) -> Tensor:
    """(answer tokens, V) float32."""
    hidden = model.model(ids, use_cache=False).last_hidden_state  # (B, T, H)
    return model.lm_head(hidden[:, :-1][wanted]).log_softmax(-1)


def iter_lessons(tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[Tensor, Tensor]]:
    """Short dialogues with many drills for the first SHORT of all tokens, then long ones, without end."""
    seen = 0
    for ids, labels in iter_batches(tokenizer, STEP_TOKENS, SEED, smallest=0.05, drills=DRILLS):
        yield ids, labels
        seen += ids.numel()
        if seen >= SHORT * TOKENS:
            break
    yield from iter_batches(tokenizer, STEP_TOKENS, SEED + 1, smallest=0.4, drills={"vocabulary": 0.05, "facts": 0.05})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(options.target)
    tokenizer.save_pretrained(options.out)
    target = LlamaForCausalLM.from_pretrained(options.target, dtype=torch.float32).eval()
    draft = LlamaForCausalLM(build_mini_config(layers=2, hidden=128, intermediate=320, heads=2))
    install_circuit(draft, SEED)
    loss_of = partial(draft_loss, draft, target)
    note = partial(write_log_line, options.out, draft, tokenizer)
    fit(draft, iter_lessons(tokenizer), loss_of, TOKENS, RATES, falling=True, note=note)
    draft.half().save_pretrained(options.out)


if __name__ == "__main__":
    main()
