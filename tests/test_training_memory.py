"""`specbench train` says beforehand what does not fit in memory, and in one line what did not fit after all."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from methods.eagle import EagleNetwork
from methods.eagle3 import Eagle3Network
from methods.hydra_heads import HydraNetwork
from methods.medusa import MedusaHeads
from specbench.decoding.language_model import LanguageModel
from specbench.drafters.network import DraftNetwork, TargetShape
from specbench.drafters.network_drafter import create_network
from specbench.errors import InputError
from specbench.machine.devices import get_peak_memory, reset_peak_memory
from specbench.models.texts import Text
from specbench.training import memory
from specbench.training.memory import TrainingMemory, check_memory, explain_exhaustion
from specbench.training.trainer import Batches, build_lesson
from tests.conftest import Cli, Tiny
from tests.test_training import overrides

KINDS: list[type[DraftNetwork]] = [MedusaHeads, HydraNetwork, EagleNetwork, Eagle3Network]
SHAPE = TargetShape(64, 1000, 8, 96, 4, 4, 16, 1e-6, 2048)
CPU = torch.device("cpu")


def build(kind: type[DraftNetwork], device: str = "meta") -> DraftNetwork:
    with torch.device(device):
        return kind(kind.create_config(SHAPE), SHAPE)


def test_the_estimate_by_hand() -> None:
    """Medusa: four heads of 64 × 64 + 64 and 1,000 × 64 weights; at most 4 + 2 matrices of logits."""
    weights = 4 * (64 * 64 + 64 + 1000 * 64)
    found = TrainingMemory.of(build(MedusaHeads))
    assert found == TrainingMemory(fixed=4 * 4 * weights, token=4 * 64 * (12 + 1 + 1), answer=4 * 1000 * 6)
    assert TrainingMemory.of(build(MedusaHeads, "cpu")).fixed == 3 * 4 * weights, "its weights are there already"
    assert found.sum(tokens=100, answers=40) == found.fixed + 100 * found.token + 40 * found.answer
    assert TrainingMemory.of(build(Eagle3Network)).answer == 4 * 1000 * 18


@pytest.mark.parametrize("kind", KINDS)
def test_what_does_not_fit_is_refused_with_what_would(kind: type[DraftNetwork], monkeypatch: pytest.MonkeyPatch) -> None:
    network = build(kind)
    need = TrainingMemory.of(network)
    monkeypatch.setattr(memory, "get_free_memory", lambda device: need.sum(500, 300))
    check_memory(network, CPU, 500, 300, 4096)
    with pytest.raises(InputError) as error:
        check_memory(network, CPU, 1000, 600, 4096)
    said = str(error.value)
    assert said.startswith("batch_tokens=4096: expected at most about 500: training needs ") and " GB are free" in said
    assert "600 answer tokens × 1,000 ids" in said and "\n" not in said
    monkeypatch.setattr(memory, "get_free_memory", lambda device: need.fixed // 2)
    with pytest.raises(InputError, match="batch_tokens=4096: no batch is small enough"):
        check_memory(network, CPU, 10, 5, 4096)


def test_the_largest_batch_counts_padding_and_answers() -> None:
    made = Batches([Text([2] * 3, [4] * 7), Text([2] * 8, [4] * 4), Text([2] * 20, [4] * 5)], tokens=24, longest=100)
    assert made.find_largest() == (25, 11)


def test_too_much_is_refused_before_the_target_answers(
    tiny: Tiny, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "get_free_memory", lambda device: 3_000_000)
    given = overrides(tiny, tmp_path / "out", "eagle3")
    outcome = cli("train", *given)
    assert outcome.status == 2 and outcome.err.count("\n") == 1
    assert outcome.err.startswith("specbench: batch_tokens=1024: ") and "GB are free" in outcome.err
    assert not (tmp_path / "out" / "texts.jsonl").exists()


def test_an_allocator_that_fails_is_one_line(tiny: Tiny, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Any:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried")

    monkeypatch.setattr("specbench.training.trainer.build_lesson", fail)
    outcome = cli("train", *overrides(tiny, tmp_path / "out", "medusa"))
    assert outcome.status == 2 and outcome.err.count("\n") == 1
    expected = "batch_tokens=1024: the memory of cpu ran out; expected fewer tokens, and another out"
    assert outcome.err.startswith(f"specbench: {expected}"), outcome.err


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried"), MemoryError()])
def test_every_way_in_which_memory_runs_out(error: Exception) -> None:
    with pytest.raises(InputError, match="^batch_tokens=7: the memory of cpu ran out; do less$"):
        raise_inside(error)
    with pytest.raises(RuntimeError, match="something else"):
        raise_inside(RuntimeError("something else"))


def raise_inside(error: Exception) -> None:
    with explain_exhaustion(CPU, "batch_tokens=7", "do less"):
        raise error


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_estimate_is_near_what_is_measured(kind: type[DraftNetwork]) -> None:
    """Of a small network over a large vocabulary, whose logits take most; within a factor of 1.7 of the peak."""
    config = AutoConfig.for_model(
        "llama", vocab_size=30_000, hidden_size=32, intermediate_size=64, num_hidden_layers=8, num_attention_heads=4
    )
    target = LanguageModel(AutoModelForCausalLM.from_config(config))  # type: ignore[no-untyped-call]
    network = create_network(kind, target)
    texts = [Text([5] * 20, [7] * 180) for _ in range(6)]
    gc.collect()
    before = psutil.Process().memory_info().rss
    reset_peak_memory(CPU)
    lesson = build_lesson(texts, target, network.taps)
    torch.autograd.backward(network.compute_loss(lesson).loss)
    measured = (get_peak_memory(CPU) or 0) - before
    trained = sum(weight.numel() for weight in network.parameters() if weight.requires_grad)
    estimated = TrainingMemory.of(network).sum(1200, 1080) - 2 * 4 * trained  # without AdamW's moments
    assert 1 / 1.7 < estimated / measured < 1.7, (estimated, measured)
