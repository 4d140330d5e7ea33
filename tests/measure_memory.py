"""Announced and measured bytes, in a process of its own: python -m tests.measure_memory run|train NAME VOCABULARY HIDDEN …

The same is done once before it is measured: what libraries take when they are first used is no part of the announcement.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

import psutil
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from methods.eagle import EagleNetwork
from methods.eagle3 import Eagle3Network
from methods.hydra_heads import HydraNetwork
from methods.medusa import MedusaHeads
from specbench.decoding.autoregressive import Autoregressive
from specbench.decoding.language_model import LanguageModel
from specbench.decoding.loop import capacity, generate
from specbench.decoding.sampling import Sampling
from specbench.drafters.network import DraftNetwork, TargetShape
from specbench.drafters.network_drafter import create_network
from specbench.machine.devices import get_peak_memory, release_memory, reset_peak_memory
from specbench.machine.rehearsal import Rehearsal
from specbench.models import products
from specbench.models.load import load_model
from specbench.models.outline import outline_model
from specbench.models.texts import Text
from specbench.running.rehearse import rehearse_methods
from specbench.setup.compose import compose_run
from specbench.setup.objects import instantiate_methods
from specbench.setup.settings import Node
from specbench.training.memory import rehearse_training
from specbench.training.steps import TrainingPlan, build_lesson, build_optimizers, list_trained

CPU = torch.device("cpu")
KINDS: dict[str, type[DraftNetwork]] = {
    "medusa": MedusaHeads,
    "hydra_heads": HydraNetwork,
    "eagle": EagleNetwork,
    "eagle3": Eagle3Network,
}
LAYERS = 8
SAMPLING = Sampling(max_new_tokens=200)


def describe(vocabulary: int, hidden: int) -> dict[str, Any]:
    heads = max(2, hidden // 64)
    return {
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    }


def measure(job: Callable[[], object]) -> int:
    """Return the bytes by which the resident size rises at most."""
    job()
    release_memory(CPU)
    before = psutil.Process().memory_info().rss
    reset_peak_memory(CPU)
    job()
    return (get_peak_memory(CPU) or 0) - before


def compare_run(label: str, vocabulary: int, hidden: int, dtype: str, prompt: int) -> tuple[int, int]:
    products.measure_first_row = lambda layers: 1  # everything is packed, whatever this processor would choose
    config = describe(vocabulary, hidden)
    checkpoints = [f"target.checkpoints.{name}=random" for name in KINDS]
    nodes = compose_run([f"method=[{label}]", *checkpoints]).method
    with Rehearsal() as rehearsal:
        outline = outline_model(path=None, weights="random", config=config, dtype=dtype, device="cpu")
        announced = rehearse_methods(rehearsal, outline, nodes, SAMPLING, prompt).total
    return announced, measure(lambda: decode(config, dtype, nodes, label, prompt))


def decode(config: dict[str, Any], dtype: str, nodes: Mapping[str, Node], label: str, prompt: int) -> None:
    """Load a target and a method, and decode a few tokens with all the memory of a long answer."""
    target = load_model(None, weights="random", config=config, dtype=dtype, device="cpu")
    drafter = instantiate_methods(nodes)[label]
    drafter.bind(target)
    release_memory(CPU)
    reset_peak_memory(CPU)  # of the copies that the load's tests make
    store = target.create_store(max(capacity(target, one, prompt, SAMPLING) for one in (Autoregressive(), drafter)))
    generate(target, drafter, [torch.ones(prompt, dtype=torch.long)], Sampling(max_new_tokens=12), store)


def compare_training(name: str, vocabulary: int, hidden: int, count: int, length: int) -> tuple[int, int]:
    architecture = AutoConfig.for_model(**describe(vocabulary, hidden))
    model: Any = AutoModelForCausalLM.from_config(architecture)  # type: ignore[no-untyped-call]
    target = LanguageModel(model.requires_grad_(False))
    plan = TrainingPlan(1, count * length, 1, 1e-3, None, "no", 10, 0)
    texts = [Text([5] * (length // 4), [7] * (length - length // 4))] * count
    kind = KINDS[name]
    config = kind.create_config(TargetShape.of(target.config))
    return rehearse_training(kind, config, target, plan, texts).peak, measure(lambda: take_steps(kind, target, plan, texts))


def take_steps(kind: type[DraftNetwork], target: LanguageModel, plan: TrainingPlan, texts: list[Text]) -> None:
    network = create_network(kind, target)
    optimizers = build_optimizers(network, plan)
    for _ in range(2):
        lesson = build_lesson(texts, target, network.taps)
        torch.autograd.backward(network.compute_loss(lesson).loss)
        torch.nn.utils.clip_grad_norm_(list_trained(network), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


if __name__ == "__main__":
    torch.set_num_threads(1)
    what, name, *sizes = sys.argv[1:]
    given: list[Any] = [int(size) if size.isdigit() else size for size in sizes]
    print(json.dumps((compare_run if what == "run" else compare_training)(name, *given)))
