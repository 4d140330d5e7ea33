"""`specbench train` says beforehand what does not fit in memory, and in one line what did not fit after all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from methods.eagle import EagleNetwork
from methods.eagle3 import Eagle3Network
from methods.hydra_heads import HydraNetwork
from methods.medusa import MedusaHeads
from specbench.decoding.language_model import LanguageModel
from specbench.drafters.network import DraftNetwork, TargetShape
from specbench.errors import InputError
from specbench.models.texts import Text
from specbench.training import memory
from specbench.training.memory import check_memory, explain_exhaustion, rehearse_training
from specbench.training.steps import Batches, TrainingPlan
from tests.conftest import Cli, Tiny
from tests.test_training import overrides

KINDS: list[type[DraftNetwork]] = [MedusaHeads, HydraNetwork, EagleNetwork, Eagle3Network]
CPU = torch.device("cpu")


PLAN = TrainingPlan(epochs=1, batch_tokens=4096, accumulate=1, rate=1e-3, muon=None, precision="no", save_every=10, seed=0)


@pytest.fixture(scope="module")
def target() -> LanguageModel:
    config = AutoConfig.for_model(
        "llama", vocab_size=3000, hidden_size=32, intermediate_size=64, num_hidden_layers=8, num_attention_heads=4
    )
    return LanguageModel(AutoModelForCausalLM.from_config(config).requires_grad_(False))  # type: ignore[no-untyped-call]


def config_of(kind: type[DraftNetwork], target: LanguageModel, **changes: int) -> dict[str, Any]:
    return kind.create_config(TargetShape.of(target.config)) | changes


def texts_of(count: int) -> list[Text]:
    return [Text([5] * 10, [7] * 90) for _ in range(count)]


def test_the_estimate_by_hand(target: LanguageModel) -> None:
    """Medusa: four heads of 32 × 32 + 32 and 3,000 × 32 weights; each with a gradient and AdamW's two moments."""
    weights = 4 * (32 * 32 + 32 + 3000 * 32)
    need = rehearse_training(MedusaHeads, config_of(MedusaHeads, target), target, PLAN, texts_of(2))
    assert need.weights == 4 * weights and need.fixed == pytest.approx(4 * need.weights, rel=1e-3)
    logits = 4 * 180 * 3000
    assert 4 * logits < need.peak - need.fixed < 8 * logits, "one matrix per head, and two to three to compute one"


@pytest.mark.parametrize("kind", KINDS)
def test_more_answers_need_more_and_a_small_draft_vocabulary_less(kind: type[DraftNetwork], target: LanguageModel) -> None:
    config = config_of(kind, target)
    one, two = (rehearse_training(kind, config, target, PLAN, texts_of(count)) for count in (2, 4))
    assert one.fixed == pytest.approx(two.fixed, rel=1e-3) and two.peak - two.fixed > 1.5 * (one.peak - one.fixed) > 0
    if kind is Eagle3Network:
        small = rehearse_training(kind, config_of(kind, target, draft_vocab_size=300), target, PLAN, texts_of(2))
        assert small.fixed < one.fixed / 2 and small.peak < one.peak / 2


@pytest.mark.parametrize("kind", KINDS)
def test_what_does_not_fit_is_refused_with_what_would(
    kind: type[DraftNetwork], target: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(kind, target)
    half, whole = (rehearse_training(kind, config, target, PLAN, texts_of(count)) for count in (3, 6))
    monkeypatch.setattr(memory, "get_free_memory", lambda device: half.peak)
    assert check_memory(kind, config, target, PLAN, [texts_of(3)]).endswith(" GB free")
    with pytest.raises(InputError) as error:
        check_memory(kind, config, target, PLAN, [texts_of(6)])
    said = str(error.value)
    room = int(said.partition("at most about ")[2].partition(":")[0])
    assert 0.8 * 300 < room < 1.2 * 300, said
    assert said.startswith("batch_tokens=4096: expected at most about ") and " GB are free" in said
    assert "540 answer tokens × 3,000 ids" in said and "\n" not in said
    check_memory(kind, config, target, PLAN, [texts_of(1)], made=True)
    monkeypatch.setattr(memory, "get_free_memory", lambda device: whole.fixed // 3)
    with pytest.raises(InputError, match="batch_tokens=4096: no batch is small enough"):
        check_memory(kind, config, target, PLAN, [texts_of(1)])


def test_nothing_is_claimed_of_a_loss_that_cannot_be_rehearsed(target: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MedusaHeads, "compute_loss", lambda *_: torch.zeros(3).numpy())
    assert check_memory(MedusaHeads, config_of(MedusaHeads, target), target, PLAN, [texts_of(1)]) == ""


def test_the_largest_batches_by_padding_and_by_answers() -> None:
    wide, many = [Text([2] * 20, [4] * 5)], [Text([2] * 3, [4] * 7), Text([2] * 8, [4] * 4)]
    assert Batches([*many, *wide], tokens=24, longest=100).list_largest() == [wide, many]
    assert Batches(wide, tokens=24, longest=100).list_largest() == [wide]


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
    outcome = cli("train", "-q", *overrides(tiny, tmp_path / "out", "medusa"))
    assert outcome.status == 2 and outcome.err.count("\n") == 1
    expected = "batch_tokens=1024: the memory of cpu ran out; expected fewer tokens, and a new out"
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
