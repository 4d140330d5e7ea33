"""The recipe of the embedded draft model: two layers, a tenth of the target, trained on the target's distribution.

    python -m specbench.zoo.recipes.train_draft TARGET OUT

It is first trained on the dialogues' tokens alone, then also on the target's distribution at every answer token
(Kullback-Leibler divergence). Training is short on purpose: with four times as much the draft model would predict nearly all of
the target's text. OUT receives the same files as in the target's recipe.
"""

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

from specbench.zoo.recipes.batches import Batch, iter_batches
from specbench.zoo.recipes.circuits import install_circuit
from specbench.zoo.recipes.fit import build_mini_config, compute_answers, fit, write_log_line

SEED = 12
TOKENS, STEP_TOKENS = 2_000_000, 4096
RATES = (0.005, 1.5e-3)
DISTILLED = 0.7  # share of the divergence in the loss
SHORT = 0.35  # of the tokens: short dialogues and drills until then
ALONE = 0.7  # of the tokens: no distillation until then
DRILLS = {"repeat": 0.13, "vocabulary": 0.15, "arithmetic": 0.07, "facts": 0.1}


def draft_loss(draft: LlamaForCausalLM, target: LlamaForCausalLM, ids: Tensor, labels: Tensor, progress: float) -> Tensor:
    """Return the cross-entropy of answer tokens and, later, the divergence from the target's distribution; in nats."""
    logits, tokens = compute_answers(draft, ids, labels)
    log_probs = logits.log_softmax(-1)
    text = nn.functional.nll_loss(log_probs, tokens)
    if progress <= ALONE:
        return text
    with torch.no_grad():
        target_log_probs = compute_answers(target, ids, labels)[0].log_softmax(-1)
    divergence = nn.functional.kl_div(log_probs, target_log_probs, log_target=True, reduction="batchmean")
    return DISTILLED * divergence + (1 - DISTILLED) * text


def iter_lessons(tokenizer: PreTrainedTokenizerBase) -> Iterator[Batch]:
    """Yield short dialogues with many drills for the first SHORT of all tokens, then long ones, without end."""
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
    target = LlamaForCausalLM.from_pretrained(options.target, dtype=torch.float32).eval()  # type: ignore[no-untyped-call]
    draft = LlamaForCausalLM(build_mini_config(layers=2, hidden=128, intermediate=320, heads=2))
    install_circuit(draft, SEED)
    log = partial(write_log_line, options.out, draft, tokenizer)
    fit(draft, iter_lessons(tokenizer), partial(draft_loss, draft, target), TOKENS, RATES, falling=True, log=log)
    draft.half().save_pretrained(options.out)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
