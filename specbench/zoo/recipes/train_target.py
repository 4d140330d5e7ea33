"""The recipe of the embedded target: four layers first, then doubled to eight without changing an output.

    python -m specbench.zoo.recipes.train_target OUT [--from-stage N]

OUT receives model.safetensors, config.json, the tokenizer and training_log.jsonl: per line stage, step, tokens, seconds, loss
and, per task, held-out loss and share of answer tokens predicted.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from specbench.zoo.recipes.batches import iter_batches
from specbench.zoo.recipes.circuits import install_circuit
from specbench.zoo.recipes.fit import build_mini_config, compute_answers, fit, write_log_line
from specbench.zoo.recipes.tokenizer import build_tokenizer

SEED = 11


@dataclass(frozen=True)
class Stage:
    """A training stage: smallest dialogue size, shares of drills, tokens in all and per step, peak rates of Muon and AdamW."""

    layers: int
    smallest: float
    drills: Mapping[str, float]
    tokens: int
    step_tokens: int
    rates: tuple[float, float]
    falling: bool = False


STAGES = (
    Stage(
        layers=4, smallest=0.05, drills={"repeat": 0.13, "vocabulary": 0.13, "arithmetic": 0.14},
        tokens=2_000_000, step_tokens=3072, rates=(0.004, 1e-3),
    ),
    Stage(
        layers=4, smallest=0.2, drills={"facts": 0.15, "arithmetic": 0.08},
        tokens=4_000_000, step_tokens=4096, rates=(0.008, 2e-3),
    ),
    Stage(
        layers=8, smallest=0.6, drills={"facts": 0.05, "arithmetic": 0.06},
        tokens=4_000_000, step_tokens=4096, rates=(0.008, 2e-3), falling=True,
    ),
    Stage(layers=8, smallest=1.0, drills={}, tokens=1_200_000, step_tokens=4096, rates=(0.004, 1e-3), falling=True),
)  # fmt: skip


def build_target_config(layers: int) -> LlamaConfig:
    return build_mini_config(layers, hidden=256, intermediate=640, heads=4)


def double_layers(model: LlamaForCausalLM, config: LlamaConfig) -> LlamaForCausalLM:
    """Return a model with twice the layers and the same outputs: each layer is followed by a copy whose outputs are zero."""
    deep = LlamaForCausalLM(config)
    doubled = {}
    for name, value in model.state_dict().items():
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


def train_stage(model: LlamaForCausalLM, number: int, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """Train one stage, logging and saving a checkpoint regularly."""
    stage = STAGES[number]

    def log(row: dict[str, Any]) -> None:
        write_log_line(out, model, tokenizer, {"stage": number, **row})
        model.save_pretrained(out)

    def compute_loss(ids: Tensor, labels: Tensor, progress: float) -> Tensor:
        return nn.functional.cross_entropy(*compute_answers(model, ids, labels))

    stream = iter_batches(tokenizer, stage.step_tokens, SEED + number, stage.smallest, stage.drills)
    fit(model, stream, compute_loss, stage.tokens, stage.rates, stage.falling, log)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--from-stage", type=int, default=0, help="resume at this stage from the model in OUT")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(options.out)
    if options.from_stage:
        model = LlamaForCausalLM.from_pretrained(options.out, dtype=torch.float32)
    else:
        model = LlamaForCausalLM(build_target_config(STAGES[0].layers))
        install_circuit(model, SEED)
    for number, stage in enumerate(STAGES[options.from_stage :], options.from_stage):
        if stage.layers != model.config.num_hidden_layers:
            model = double_layers(model, build_target_config(stage.layers))
        train_stage(model, number, tokenizer, options.out)
    model.half().save_pretrained(options.out)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
